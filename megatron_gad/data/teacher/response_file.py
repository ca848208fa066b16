"""The file of collected responses: a kill at any byte costs at most the rows in flight."""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_gad.data.teacher.wanted import RowKey, WantedRow
from megatron_gad.files import replacing


@dataclass(frozen=True)
class StoredRow:
    """A row of the file.

    offset: of its line, in bytes.
    length: of its line, in bytes, the newline included.
    prompt_tokens: None if the row does not say.
    completion_tokens: None if the row does not say.
    """

    offset: int
    length: int
    prompt_tokens: int | None
    completion_tokens: int | None


class ResponseFile:
    """Appends rows durably, and knows which rows it holds.

    One process writes a file at a time; a second one is refused.

    rows: every row in the file.
    num_recovered: number of rows that were in the file when it was opened.
    has_dropped_tail: whether a half-written last line was found and removed.
    """

    def __init__(self, path: Path, wanted: Sequence[WantedRow]) -> None:
        """Open or create the file and read what an earlier run left.

        Raises:
            ValueError: the file holds rows that are not wanted, or is no collection at all, or is
                being written by another process.
        """
        self.path = path
        self.rows: dict[RowKey, StoredRow] = {}
        self.has_dropped_tail = False
        self._wanted = {row.key: row for row in wanted}
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer, so that what the disk refuses is not written by a later close.
        self._file = path.open("ab+", buffering=0)
        try:
            self._lock()
            self._size = self._recover()
        except BaseException:
            self._file.close()
            raise
        self.num_recovered = len(self.rows)

    def __enter__(self) -> "ResponseFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows and return when they are on the disk.

        Raises:
            OSError: the disk refuses them, or the file was removed or replaced meanwhile.
        """
        lines = [(json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8") for row in rows]
        try:
            self._write(b"".join(lines))
        except OSError as error:
            raise OSError(
                f"{self.path}: cannot be written ({error.strerror}), so nothing more is asked; "
                f"{len(self.rows)} rows had been written. Give it a disk with room, and the same "
                "command goes on"
            ) from error
        for row, line in zip(rows, lines, strict=True):
            self.rows[_key(row)] = _stored(row, self._size, len(line))
            self._size += len(line)

    def put_in_order(self) -> None:
        """Rewrite the file in the order of the wanted rows, since responses arrive in any order."""
        wanted = [self.rows[key] for key in self._wanted if key in self.rows]
        if all(left.offset < right.offset for left, right in pairwise(wanted)):
            return
        with (
            replacing(self.path) as draft,
            draft.open("wb") as ordered,
            self.path.open("rb") as file,
        ):
            for row in wanted:
                file.seek(row.offset)
                ordered.write(file.read(row.length))
            ordered.flush()
            os.fsync(ordered.fileno())

    def _write(self, data: bytes) -> None:
        named, opened = os.stat(self.path), os.fstat(self._file.fileno())
        if not os.path.samestat(named, opened):
            raise OSError(0, "another file has taken its place")
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{self.path}: another collection is writing this file; wait for it or choose"
                " another --out"
            ) from error

    def _recover(self) -> int:
        """Index the rows, cut a half-written last line off, and return the file's size."""
        offset = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    self._file.truncate(offset)
                    self.has_dropped_tail = True
                    break
                place = f"{self.path}, row {number}"
                row = self._verified(line, place)
                key = _key(row)
                if key in self.rows:
                    raise ValueError(f"{place}: {key} occurs twice; remove one of the two")
                self.rows[key] = _stored(row, offset, len(line))
                offset += len(line)
        return offset

    def _verified(self, line: bytes, place: str) -> Mapping[str, Any]:
        """Return a row after comparing it with the one that is wanted."""
        try:
            row = json.loads(line.decode("utf-8"))
            key, messages, model = _key(row), row["content"], row["model"]
            wanted = self._wanted.get(key)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{place}: not a collected row ({type(error).__name__}: {error}); choose another"
                " --out"
            ) from error
        if wanted is None or wanted.messages != messages:
            raise ValueError(
                f"{place}: {key} does not belong to the prompts given; resume with the same"
                " --prompts and --num-answers, or choose another --out"
            )
        if model != wanted.model:
            raise ValueError(
                f"{place}: answered by {model!r}, and {wanted.model!r} is asked now; resume with"
                " the same --model, --weights and --seed, or choose another --out"
            )
        return row


def _key(row: Mapping[str, Any]) -> RowKey:
    return RowKey(row["id"], row.get("answer", 1))


def _stored(row: Mapping[str, Any], offset: int, length: int) -> StoredRow:
    return StoredRow(offset, length, row.get("prompt_tokens"), row.get("completion_tokens"))
