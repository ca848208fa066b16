"""Results that are expensive to get, each under a key of what it is the result of.

A record is on the disk before the next is asked for. A kill costs at most those in flight.
"""

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def content_key(content: Any) -> str:
    """Return what names a result: a hash of all that it depends on, which is plain JSON."""
    text = json.dumps(content, ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class RecordFile:
    """A file of JSON lines with a "key" each; use it as a context manager.

    records: key -> record, all that the file holds.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file, and drop a last line that is half written.

        Raises ValueError: it holds something else, or another process is writing it.
        """
        self.path = path
        self.records: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer, so that what the disk refuses is not written by a later close.
        self._file = path.open("ab+", buffering=0)
        try:
            self._lock()
            self._recover()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "RecordFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write records and return when they are on the disk."""
        lines = [json.dumps(record, ensure_ascii=True) + "\n" for record in records]
        rest = memoryview("".join(lines).encode("ascii"))
        while rest:
            rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())
        self.records.update({record["key"]: dict(record) for record in records})

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{self.path}: another evaluation is writing this file; wait for it or choose "
                "another --out"
            ) from error

    def _recover(self) -> None:
        offset = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    self._file.truncate(offset)
                    logger.warning("%s: removed a half-written last line", self.path)
                    break
                try:
                    record = json.loads(line)
                    self.records[record["key"]] = record
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise ValueError(
                        f"{self.path}, line {number}: no record of an evaluation "
                        f"({type(error).__name__}: {error}); remove the line, or move the file "
                        "away"
                    ) from error
                offset += len(line)
