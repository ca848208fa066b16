"""Files of JSON lines, one record a step: written so that a crash at any moment leaves them usable.

Strict JSON has no nan and no infinity: they are written as the strings "nan", "inf" and "-inf".
"""

import errno
import json
import logging
import math
import os
from pathlib import Path
from typing import Any, Literal, TextIO

NON_FINITE = ("nan", "inf", "-inf")

logger = logging.getLogger(__name__)


def to_json(record: dict[str, Any]) -> str:
    """Return a record as one line of strict JSON."""
    return json.dumps(_without_non_finite(record), allow_nan=False, ensure_ascii=False)


def read_records(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the records of a file and the count of lines that hold none.

    A record is an object with an integer "step". Keys with a slash are metrics; where one was nan
    or infinite it is that number again.
    """
    parsed = [_parse_record(line) for line in _lines(path)]
    records = [record for record in parsed if record is not None]
    return records, len(parsed) - len(records)


def keep_until(path: Path, step: int) -> None:
    """Drop records of later steps, and with a warning lines that hold no record."""
    kept, num_unreadable = [], 0
    for line in _lines(path):
        record = _parse_record(line)
        if record is None:
            num_unreadable += 1
        elif record["step"] <= step:
            kept.append(line)
    if num_unreadable:
        logger.warning("%s: %d unreadable line(s) dropped", path, num_unreadable)
    replace_file(path, kept)


def replace_file(path: Path, lines: list[str]) -> None:
    """Write lines beside the file, then put them in its place."""
    beside = path.with_name(path.name + ".tmp")
    with open_text(beside, "w") as file:
        file.writelines(line + "\n" for line in lines)
    os.replace(beside, path)


def sync(path: Path) -> None:
    """Wait until the disk holds a file's content, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems have nothing to do for a folder, and say so in this way.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def open_text(path: Path, mode: Literal["a", "w"]) -> TextIO:
    """Open a file for writing text that may come from anywhere."""
    # A lone surrogate, which a JSON data set may carry, becomes its own JSON escape this way.
    return path.open(mode, encoding="utf-8", errors="backslashreplace", newline="\n")


def _lines(path: Path) -> list[str]:
    # Not splitlines(): it also splits at characters that JSON leaves unescaped inside a string.
    text = path.read_text(encoding="utf-8", errors="replace")
    return [line for line in text.split("\n") if line.strip()]


def _parse_record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    for key, value in record.items():
        if "/" in key and value in NON_FINITE:
            record[key] = float(value)
    return record


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_non_finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_non_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
