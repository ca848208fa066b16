"""The output file after every kind of interruption."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_gad.data.teacher.prompt_file import TeacherPrompt
from megatron_gad.data.teacher.response_file import ResponseFile

PROMPTS = [TeacherPrompt(name, [{"role": "user", "content": f"ask {name}"}]) for name in "abcd"]


def row(index: int) -> dict[str, Any]:
    prompt = PROMPTS[index]
    return {
        "id": prompt.id,
        "content": prompt.messages,
        "teacher_response": f"größe {prompt.id}\nsecond line",
        "finish_reason": "stop",
        "model": "m",
    }


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_end_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.jsonl"
    with ResponseFile(path, PROMPTS, "m") as file:
        file.append([row(3), row(1)])
        file.append([row(0)])
        file.put_in_order()
    assert read(path) == [row(0), row(1), row(3)]
    assert [entry.name for entry in path.parent.iterdir()] == ["out.jsonl"]


def test_a_file_cut_anywhere_keeps_its_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with ResponseFile(path, PROMPTS, "m") as file:
        file.append([row(0), row(1)])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in sorted({*range(0, len(whole), 9), first - 1, first, first + 1, len(whole) - 1}):
        path.write_bytes(whole[:cut])
        with ResponseFile(path, PROMPTS, "m") as file:
            assert file.has_dropped_tail == (cut not in (0, first))
            assert list(file.places) == (["a"] if cut >= first else [])
            file.append([row(2)])
        assert read(path) == ([row(0), row(2)] if cut >= first else [row(2)])


def test_rows_appended_after_a_recovery_are_ordered_with_the_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with ResponseFile(path, PROMPTS, "m") as file:
        file.append([row(2), row(1)])
    path.write_bytes(path.read_bytes() + b'{"id": "d", "cont')
    with ResponseFile(path, PROMPTS, "m") as file:
        assert file.num_recovered == 2
        file.append([row(3)])
        file.append([row(0)])
        file.put_in_order()
    assert read(path) == [row(0), row(1), row(2), row(3)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (json.dumps(row(0)), r"row 2: id 'a' occurs twice"),
        (json.dumps(row(1) | {"id": "z"}), r"row 2: id 'z' does not belong"),
        (json.dumps(row(1) | {"content": "other"}), r"row 2: id 'b' does not belong"),
        (json.dumps(row(1) | {"model": "n"}), r"row 2: answered by 'n', and 'm' is asked"),
        ('{"id": "b"}', r"row 2: not a collected row"),
        ("nonsense", r"row 2: not a collected row"),
    ],
)
def test_a_file_of_another_collection_is_refused_and_kept(
    tmp_path: Path, line: str, reason: str
) -> None:
    path = tmp_path / "out.jsonl"
    before = f"{json.dumps(row(0))}\n{line}\n"
    path.write_text(before)
    with pytest.raises(ValueError, match=reason):
        ResponseFile(path, PROMPTS, "m")
    assert path.read_text() == before


def test_a_second_writer_is_refused_while_the_first_writes(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with (
        ResponseFile(path, PROMPTS, "m"),
        pytest.raises(ValueError, match="another collection is writing"),
    ):
        ResponseFile(path, PROMPTS, "m")
    with ResponseFile(path, PROMPTS, "m") as file:
        assert file.num_recovered == 0
