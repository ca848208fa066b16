"""Prompts in a file that is mapped into memory: no process holds more than it asks for."""
# pyright: basic
# (pyarrow has no types)

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

from megatron_gad.types import Prompt

BATCH_ROWS = 512  # written at once
ID_COLUMNS = ("ids", "teacher_ids", "scorer_ids")


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write prompts as an Arrow file, which takes no more memory than a batch of them."""
    pyarrow = _pyarrow()
    schema = pyarrow.schema(
        {
            "index": pyarrow.int64(),
            "messages": pyarrow.string(),  # as JSON: their keys differ
            "teacher_text": pyarrow.string(),
            "teacher_truncated": pyarrow.bool_(),
            **dict.fromkeys(ID_COLUMNS, pyarrow.list_(pyarrow.int32())),
            "columns": pyarrow.string(),  # as JSON
        }
    )
    rest = iter(prompts)
    with pyarrow.ipc.new_file(str(path), schema) as file:
        while rows := [_to_row(prompt) for prompt in itertools.islice(rest, BATCH_ROWS)]:
            file.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema=schema))


class StoredPrompts(Sequence[Prompt]):
    """The prompts of a file at ``path``; each is made when it is asked for."""

    def __init__(self, path: Path) -> None:
        pyarrow = _pyarrow()
        self.path = path
        self._file = pyarrow.memory_map(str(path))
        self._table = pyarrow.ipc.open_file(self._file).read_all()

    def __len__(self) -> int:
        return self._table.num_rows

    @overload
    def __getitem__(self, item: int) -> Prompt: ...
    @overload
    def __getitem__(self, item: slice) -> tuple[Prompt, ...]: ...
    def __getitem__(self, item: int | slice) -> Prompt | tuple[Prompt, ...]:
        if isinstance(item, slice):
            return tuple(self[number] for number in range(*item.indices(len(self))))
        number = item + len(self) if item < 0 else item
        if not 0 <= number < len(self):
            raise IndexError(f"prompt {item} of {len(self)}")
        cells = {name: self._table[name][number] for name in self._table.column_names}
        ids = {name: tuple(cells[name].values.to_numpy().tolist()) for name in ID_COLUMNS}
        return Prompt(
            index=cells["index"].as_py(),
            messages=tuple(json.loads(cells["messages"].as_py())),
            teacher_text=cells["teacher_text"].as_py(),
            teacher_truncated=cells["teacher_truncated"].as_py(),
            **ids,
            columns=json.loads(cells["columns"].as_py()),
        )


def _to_row(prompt: Prompt) -> dict[str, Any]:
    return {
        "index": prompt.index,
        "messages": json.dumps(prompt.messages, default=str),
        "teacher_text": prompt.teacher_text,
        "teacher_truncated": prompt.teacher_truncated,
        **{name: getattr(prompt, name) for name in ID_COLUMNS},
        "columns": json.dumps(prompt.columns, default=str),
    }


def _pyarrow() -> Any:
    # Half a second, which runs on little data should not pay.
    import pyarrow  # noqa: PLC0415
    import pyarrow.ipc  # noqa: PLC0415

    return pyarrow
