"""Rows of files, one at a time; a bad row carries its problem."""
# pyright: basic
# (pyarrow has no types)

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from megatron_gad.data.json_files import JSON_KINDS, json_kind, read_json_values

COLUMNAR_ROWS = 64  # rows decoded at once
KINDS = ".jsonl, .json (both also as .gz or .zst), .parquet or .arrow"
# Files that stand beside data sets and hold no rows.
NO_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
HELD_OUT = re.compile(r"(^|[-_.])(test|validation|valid|val|eval|dev)([-_.]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """One row of a file.

    file: where it is from. place: file and 1-based row number (of JSONL: the line), for messages.
    values: column -> value; empty when there is a problem.
    columns: all that the file has, of which ``values`` may hold some.
    problem: why the row cannot be read; empty for a good row.
    is_again: it came before; its file has a weight.
    """

    file: str
    place: str
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    columns: Collection[str] = ()
    problem: str = ""
    is_again: bool = False


@dataclass(frozen=True)
class DataFiles:
    """The files of a path. left_out: those in a folder whose names say that they are not meant."""

    used: tuple[Path, ...]
    left_out: tuple[Path, ...] = ()


def is_held_out(name: str) -> bool:
    """Return whether a name says that its rows are for testing."""
    return HELD_OUT.search(name) is not None


def find_files(path: Path, held_out: bool = False) -> DataFiles:
    """Return a file, or those directly in a folder in order of their names.

    held_out: of a folder, use the files whose names say that they are for testing, if there are
        any; otherwise they are left out.

    Raises ValueError for a missing file, an unknown kind of file and a folder without data.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if _is_data(file))
        tests = [file for file in files if is_held_out(file.name)]
        others = [file for file in files if file not in tests]
        used, left_out = (tests, others) if held_out and tests else (others, tests)
        if not used:
            raise ValueError(_no_data(path, left_out))
        return DataFiles(tuple(used), tuple(left_out))
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; give a {KINDS} file, a folder of them or hub:NAME"
        )
    if _reader(path) is None:
        raise ValueError(f"{path} is not a {KINDS} file; rename or convert it")
    return DataFiles((path,))


def read_file_rows(
    path: str,
    wanted: Collection[str],
    held_out: bool = False,
    weights: Mapping[str, int] = MappingProxyType({}),
) -> Iterator[Row]:
    """Yield the rows of the files of a path: all of them once, then those that come again.

    wanted: the columns that may be read. held_out: as ``find_files`` takes it. weights: how often
        the rows of a file come, by its name; 1 if it is not named.

    Raises ValueError as ``find_files`` does, for a file that breaks off, and for weights of files
    that are not there or below 1.
    """
    files = find_files(Path(path), held_out).used
    _check_weights(weights, path, [file.name for file in files])
    for turn in range(max((1, *weights.values()))):
        for file in files:
            if turn < weights.get(file.name, 1):
                rows = _read(file, wanted)
                yield from (replace(row, is_again=True) for row in rows) if turn else rows


def _read(file: Path, wanted: Collection[str]) -> Iterator[Row]:
    reader = _reader(file)
    assert reader is not None, file
    return reader(file, wanted)


def _check_weights(weights: Mapping[str, int], path: str, names: Sequence[str]) -> None:
    for name, weight in weights.items():
        if name not in names:
            raise ValueError(
                f"data.weights has {name!r}, which is no file of data.path = {path!r}; it has "
                f"{', '.join(names)}"
            )
        if weight < 1:
            raise ValueError(
                f"data.weights.{name} = {weight} has to be 1 or more; take the file out of "
                f"{path!r} if its rows are not to be used"
            )


def without_nulls(value: Any) -> Any:
    """Return a cell without the keys that a columnar file adds to make all rows alike."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [without_nulls(each) for each in value]
    return value


def _no_data(path: Path, left_out: list[Path]) -> str:
    if left_out:
        names = ", ".join(file.name for file in left_out)
        return f"the folder {path} holds only data that is held out ({names}); rename or add files"
    inner = [each.name for each in sorted(path.iterdir()) if each.is_dir()]
    has_data = [name for name in inner if any(map(_is_data, (path / name).iterdir()))]
    hint = f"; name its folder {' or '.join(has_data)}" if has_data else ""
    return f"the folder {path} holds no {KINDS} file directly in it{hint}"


def _is_data(file: Path) -> bool:
    is_named = not file.name.startswith(".") and file.name not in NO_DATA
    return is_named and _reader(file) is not None and file.is_file()


def _reader(path: Path) -> Callable[[Path, Collection[str]], Iterator[Row]] | None:
    if json_kind(path) in JSON_KINDS:
        return _read_json
    return {".parquet": _read_parquet, ".arrow": _read_arrow}.get(path.suffix.lower())


def _read_json(path: Path, wanted: Collection[str]) -> Iterator[Row]:
    for number, values, problem in read_json_values(path):
        yield Row(str(path), f"{path} row {number}", values, values.keys(), problem)


def _read_parquet(path: Path, wanted: Collection[str]) -> Iterator[Row]:
    # Half a second of every start, which runs on JSONL should not pay.
    import pyarrow  # noqa: PLC0415
    import pyarrow.parquet  # noqa: PLC0415

    def batches() -> Iterator[Any]:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = [name for name in names if name in wanted]
            for batch in file.iter_batches(batch_size=COLUMNAR_ROWS, columns=columns or None):
                yield names, batch

    yield from _columnar_rows(path, "Parquet", batches())


def _read_arrow(path: Path, wanted: Collection[str]) -> Iterator[Row]:
    import pyarrow  # noqa: PLC0415 - see _read_parquet
    import pyarrow.ipc  # noqa: PLC0415

    def batches() -> Iterator[Any]:
        with pyarrow.memory_map(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"  # else a stream, as `datasets` writes it
            source.seek(0)
            if is_file:
                file = pyarrow.ipc.open_file(source)
                found = (file.get_batch(number) for number in range(file.num_record_batches))
            else:
                found = iter(pyarrow.ipc.open_stream(source))
            for batch in found:
                columns = [name for name in batch.schema.names if name in wanted]
                chosen = batch.select(columns) if columns else batch
                for start in range(0, batch.num_rows, COLUMNAR_ROWS):
                    yield batch.schema.names, chosen.slice(start, COLUMNAR_ROWS)

    yield from _columnar_rows(path, "Arrow", batches())


def _columnar_rows(path: Path, kind: str, batches: Iterator[Any]) -> Iterator[Row]:
    import pyarrow  # noqa: PLC0415 - see _read_parquet

    number = 0
    try:
        for names, batch in batches:
            for row in batch.to_pylist():
                number += 1
                values = {name: without_nulls(cell) for name, cell in row.items()}
                yield Row(str(path), f"{path} row {number}", values, names)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not a sound {kind} file after row {number} ({error}); get it again"
        ) from error
