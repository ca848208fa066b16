"""The file of collected responses: a kill at any byte costs at most the rows in flight."""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from megatron_gad.data.teacher.prompt_file import TeacherPrompt
from megatron_gad.files import replacing


@dataclass(frozen=True)
class Place:
    """Where a row's line lies in the file, in bytes, its newline included."""

    offset: int
    length: int


class ResponseFile:
    """Appends rows durably, and knows which rows it holds.

    One process writes a file at a time; a second one is refused.

    places: id -> place of every row in the file.
    num_recovered: rows that were in the file when it was opened.
    has_dropped_tail: a half-written last line was found and removed.
    """

    def __init__(self, path: Path, prompts: Sequence[TeacherPrompt], model: str) -> None:
        """Open or create the file and read what an earlier run left.

        Raises:
            ValueError: the file holds rows of other prompts or of another model, or is no
                collection at all, or is being written by another process.
        """
        self.path = path
        self.places: dict[str | int, Place] = {}
        self.has_dropped_tail = False
        self._order = [prompt.id for prompt in prompts]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("ab+")
        try:
            self._lock()
            self._size = self._recover({prompt.id: prompt for prompt in prompts}, model)
        except BaseException:
            self._file.close()
            raise
        self.num_recovered = len(self.places)

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
        """Write rows and return when they are on the disk."""
        for row in rows:
            line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8")
            self._file.write(line)
            self.places[row["id"]] = Place(self._size, len(line))
            self._size += len(line)
        self._file.flush()
        os.fsync(self._file.fileno())

    def put_in_order(self) -> None:
        """Rewrite the file in the order of the prompts, since responses arrive in any order."""
        wanted = [self.places[row_id] for row_id in self._order if row_id in self.places]
        if all(left.offset < right.offset for left, right in pairwise(wanted)):
            return
        with replacing(self.path) as draft, draft.open("wb") as ordered:
            for place in wanted:
                self._file.seek(place.offset)
                ordered.write(self._file.read(place.length))
            ordered.flush()
            os.fsync(ordered.fileno())

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{self.path}: another collection is writing this file; wait for it or choose"
                " another --out"
            ) from error

    def _recover(self, prompts: Mapping[str | int, TeacherPrompt], model: str) -> int:
        """Index the rows, cut a half-written last line off, and return the file's size."""
        self._file.seek(0)
        offset = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                self._file.truncate(offset)
                self.has_dropped_tail = True
                break
            row_id = _verified_id(line, prompts, model, f"{self.path}, row {number}")
            if row_id in self.places:
                raise ValueError(f"{self.path}, row {number}: id {row_id!r} occurs twice")
            self.places[row_id] = Place(offset, len(line))
            offset += len(line)
        return offset


def _verified_id(
    line: bytes, prompts: Mapping[str | int, TeacherPrompt], model: str, place: str
) -> str | int:
    """Return the id of a row after comparing it with the prompt of that id."""
    try:
        row = json.loads(line.decode("utf-8"))
        row_id, messages, row_model = row["id"], row["content"], row["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{place}: not a collected row ({type(error).__name__}: {error}); choose another --out"
        ) from error
    if row_id not in prompts or prompts[row_id].messages != messages:
        raise ValueError(
            f"{place}: id {row_id!r} does not belong to the prompts given; resume with the same"
            " --prompts, or choose another --out"
        )
    if row_model != model:
        raise ValueError(
            f"{place}: answered by {row_model!r}, and {model!r} is asked now; one file holds one"
            " teacher, so choose another --out"
        )
    return row_id
