"""Rows of JSON files: a row per line, or one list of rows; plain, or compressed."""
# pyright: basic
# (pyarrow has no types)

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

JSON_KINDS = (".jsonl", ".json")
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
MARK = b"\xef\xbb\xbf"  # some editors begin UTF-8 with it

# Row number, values, what is wrong with the row.
Found = tuple[int, dict[str, Any], str]


def json_kind(path: Path) -> str:
    """Return the suffix of a file, without that of its compression."""
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return inner.suffix.lower()


def read_json_values(path: Path) -> Iterator[Found]:
    """Yield the rows of a .jsonl or .json file; blank lines are none.

    Raises ValueError for a list that is not JSON and for a compressed file that breaks off.
    """
    number = 0
    try:
        with _open(path) as file:
            is_list = json_kind(path) == ".json" and _first_byte(file) == b"["
            for number, values, problem in _read_list(path, file) if is_list else _read_lines(file):
                yield number, values, problem
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read after row {number} ({error}); get it again"
        ) from error


def _open(path: Path) -> BinaryIO:
    codec = COMPRESSED.get(path.suffix.lower())
    if codec is None:
        return path.open("rb")
    import pyarrow  # noqa: PLC0415 - half a second, which plain files should not pay

    return io.BufferedReader(pyarrow.input_stream(str(path), compression=codec))  # pyright: ignore


def _first_byte(file: Any) -> bytes:
    return file.peek(64)[:64].removeprefix(MARK).lstrip()[:1]


def _read_lines(file: BinaryIO) -> Iterator[Found]:
    for number, line in enumerate(file, 1):
        line = line.removeprefix(MARK) if number == 1 else line
        if line.strip():
            yield number, *_row(line)


def _row(line: bytes) -> tuple[dict[str, Any], str]:
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return {}, f"is not UTF-8 (byte 0x{line[error.start]:02x} at {error.start}); convert it"
    except (ValueError, RecursionError) as error:
        cut = "" if line.endswith(b"\n") else "; the file ends inside this row, copy it again"
        return {}, f"is not JSON ({error}){cut}"
    return _checked(values, "line")


def _checked(values: Any, unit: str) -> tuple[dict[str, Any], str]:
    if isinstance(values, dict):
        return values, ""
    return {}, f"is a JSON {type(values).__name__}; every {unit} has to be one JSON object"


def _read_list(path: Path, file: BinaryIO) -> Iterator[Found]:
    data = file.read().removeprefix(MARK)
    try:
        values = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte 0x{data[error.start]:02x} at {error.start}); convert it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON list ({error}); get it again") from error
    for number, value in enumerate(values, 1):
        yield number, *_checked(value, "entry of the list")
