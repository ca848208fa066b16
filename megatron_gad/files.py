"""Files that a crash at any moment leaves usable; among them JSON lines, one record a step.

Strict JSON has no nan and no infinity: they are written as the strings "nan", "inf" and "-inf".
"""

import errno
import json
import logging
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

NON_FINITE = ("nan", "inf", "-inf")
# A lone surrogate, which a JSON data set may carry, becomes its own JSON escape this way.
UNENCODABLE = "backslashreplace"

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
    replace_lines(path, kept)


def draft_of(path: Path) -> Path:
    """Return the path beside a file or folder at which it is written before it has its name."""
    return path.with_name(path.name + ".draft")


def delete_tree(path: Path) -> None:
    """Delete a folder, or a link to one without what it leads to."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the draft of a file to write; at the end it takes the file's place.

    An error in the block leaves the file as it was, and no draft. A link that somebody put in the
    draft's place is not written through.
    """
    draft = draft_of(path)
    draft.unlink(missing_ok=True)
    try:
        yield draft
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str, errors: str = UNENCODABLE) -> None:
    """Replace a file's content; errors: what becomes of characters that UTF-8 cannot encode."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", errors=errors, newline="\n")


def replace_lines(path: Path, lines: Iterable[str]) -> None:
    """Replace a file's content by lines, which are given without their ends."""
    replace_text(path, "".join(line + "\n" for line in lines))


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


def open_to_append(path: Path) -> TextIO:
    """Open a file at whose end text is written that may come from anywhere."""
    return path.open("a", encoding="utf-8", errors=UNENCODABLE, newline="\n")


def _lines(path: Path) -> list[str]:
    # Not splitlines(): it also splits at characters that JSON leaves unescaped inside a string.
    text = path.read_text(encoding="utf-8", errors="replace")
    return [line for line in text.split("\n") if line.strip()]


def _parse_record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # ValueError also for a number of too many digits
        return None
    if not isinstance(record, dict) or not _is_step(record.get("step")):
        return None
    for key, value in record.items():
        if "/" in key and isinstance(value, str) and value in NON_FINITE:
            record[key] = float(value)
    return record


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_non_finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_non_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
