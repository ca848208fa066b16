"""Rows of JSONL and Parquet files, one at a time; a bad row carries its problem."""
# pyright: basic
# (pyarrow has no types)

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PARQUET_ROWS = 64  # rows decoded at once


@dataclass(frozen=True)
class Row:
    """One row of a file.

    place: file and 1-based row number (of JSONL: the line), for messages.
    values: column -> value; empty when there is a problem.
    problem: why the row cannot be read; empty for a good row.
    """

    place: str
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    problem: str = ""


def read_file_rows(path: str, columns: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a file, or of the files directly in a folder in order of their names.

    Raises ValueError for a missing file, an unknown kind of file, a file without rows of this form
    and a first row that lacks one of the columns.
    """
    for file in _data_files(Path(path)):
        yield from READERS[file.suffix](file, columns)


def missing_column(existing: Iterable[str], wanted: Sequence[str]) -> str:
    """Return what is wrong when a wanted column does not exist, else an empty string."""
    names = [str(name) for name in existing]
    for column in wanted:
        if column not in names:
            nearest = difflib.get_close_matches(column, names, n=1, cutoff=0.4)
            hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
            return f"has no column {column!r}; it has {', '.join(map(repr, names)) or 'none'}{hint}"
    return ""


def raise_missing_column(place: str, problem: str) -> None:
    """Raise the ValueError of a file that lacks a column; do nothing when ``problem`` is empty."""
    if problem:
        raise ValueError(
            f"{place} {problem}. Set data.prompt_column and data.teacher_column to columns it has"
        )


def _data_files(path: Path) -> list[Path]:
    kinds = " or ".join(READERS)
    if path.is_dir():
        files = sorted(
            file
            for file in path.iterdir()
            if file.suffix in READERS and file.is_file() and not file.name.startswith(".")
        )
        if not files:
            raise ValueError(f"the folder {path} holds no {kinds} file directly in it")
        return files
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; give a {kinds} file, a folder of them or hub:NAME"
        )
    if path.suffix not in READERS:
        raise ValueError(f"{path} is not a {kinds} file; rename or convert it")
    return [path]


def _read_jsonl(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    checked = False
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            place = f"{path} row {number}"
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # some editors begin UTF-8 with a mark
            if not line.strip():
                continue
            row = _json_row(place, line)
            if not row.problem:
                problem = missing_column(row.values, columns)
                if not checked:
                    raise_missing_column(place, problem)
                    checked = True
                if problem:
                    row = Row(place, problem=problem)
            yield row


def _json_row(place: str, line: bytes) -> Row:
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = line[error.start]
        return Row(place, problem=f"is not UTF-8 (byte 0x{byte:02x} at {error.start}); convert it")
    except (ValueError, RecursionError) as error:
        cut = "" if line.endswith(b"\n") else "; the file ends inside this row, copy it again"
        return Row(place, problem=f"is not JSON ({error}){cut}")
    if not isinstance(values, dict):
        kind = type(values).__name__
        return Row(place, problem=f"is a JSON {kind}; every line has to be one JSON object")
    return Row(place, values)


def _read_parquet(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    # Half a second of every start, which runs on JSONL should not pay.
    import pyarrow  # noqa: PLC0415
    import pyarrow.parquet  # noqa: PLC0415

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            raise_missing_column(str(path), missing_column(file.schema_arrow.names, columns))
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=list(columns)):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path} row {number}", values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not a sound Parquet file after row {number} ({error}); get it again"
        ) from error


READERS = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
