"""The output file after every kind of interruption."""

import json
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from megatron_gad.data.teacher.prompt_file import TeacherPrompt
from megatron_gad.data.teacher.response_file import ResponseFile
from megatron_gad.data.teacher.wanted import plan_rows

PROMPTS = [TeacherPrompt(name, [{"role": "user", "content": f"ask {name}"}]) for name in "abcd"]
WANTED = plan_rows(PROMPTS, num_answers=1, models=["m"], weights=[1.0], seed=0)


def row(index: int, answer: int = 1) -> dict[str, Any]:
    prompt = PROMPTS[index]
    return {
        "id": prompt.id,
        "answer": answer,
        "content": prompt.messages,
        "teacher_response": f"größe {prompt.id}\nsecond line",
        "finish_reason": "stop",
        "model": "m",
    }


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_end_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.jsonl"
    with ResponseFile(path, WANTED) as file:
        file.append([row(3), row(1)])
        file.append([row(0)])
        file.put_in_order()
    assert read(path) == [row(0), row(1), row(3)]
    assert [entry.name for entry in path.parent.iterdir()] == ["out.jsonl"]


def test_a_file_cut_anywhere_keeps_its_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with ResponseFile(path, WANTED) as file:
        file.append([row(0), row(1)])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in sorted({*range(0, len(whole), 9), first - 1, first, first + 1, len(whole) - 1}):
        path.write_bytes(whole[:cut])
        with ResponseFile(path, WANTED) as file:
            assert file.has_dropped_tail == (cut not in (0, first))
            assert [key.id for key in file.rows] == (["a"] if cut >= first else [])
            file.append([row(2)])
        assert read(path) == ([row(0), row(2)] if cut >= first else [row(2)])


def test_rows_appended_after_a_recovery_are_ordered_with_the_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with ResponseFile(path, WANTED) as file:
        file.append([row(2), row(1)])
    path.write_bytes(path.read_bytes() + b'{"id": "d", "cont')
    with ResponseFile(path, WANTED) as file:
        assert file.num_recovered == 2
        file.append([row(3)])
        file.append([row(0)])
        file.put_in_order()
    assert read(path) == [row(0), row(1), row(2), row(3)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (json.dumps(row(0)), r"row 2: row 'a' occurs twice"),
        (json.dumps(row(1) | {"id": "z"}), r"row 2: row 'z' does not belong"),
        (json.dumps(row(1) | {"content": "other"}), r"row 2: row 'b' does not belong"),
        (json.dumps(row(1) | {"model": "n"}), r"row 2: answered by 'n', and 'm' is asked"),
        (json.dumps(row(1, answer=2)), r"row 2: row 'b', answer 2 does not belong"),
        (json.dumps(row(1) | {"id": ["b"]}), r"row 2: not a collected row"),
        ("[" * 100_000, r"row 2: not a collected row"),
        ("[]", r"row 2: not a collected row"),
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
        ResponseFile(path, WANTED)
    assert path.read_text() == before


def test_a_second_writer_is_refused_while_the_first_writes(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with (
        ResponseFile(path, WANTED),
        pytest.raises(ValueError, match="another collection is writing"),
    ):
        ResponseFile(path, WANTED)
    with ResponseFile(path, WANTED) as file:
        assert file.num_recovered == 0


def test_a_row_of_an_older_file_that_does_not_number_answers_is_the_first(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    old = row(0)
    del old["answer"]
    path.write_text(json.dumps(old) + "\n")
    with ResponseFile(path, WANTED) as file:
        assert list(file.rows) == [("a", 1)]


def test_several_answers_to_a_prompt_are_rows_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    wanted = plan_rows(PROMPTS, num_answers=2, models=["m"], weights=[1.0], seed=0)
    with ResponseFile(path, wanted) as file:
        file.append([row(1, answer=2), row(0, answer=2), row(1)])
        file.put_in_order()
    assert read(path) == [row(0, answer=2), row(1), row(1, answer=2)]


@pytest.mark.parametrize("loss", ["folder", "file", "another file in its place"])
def test_a_file_that_is_gone_is_noticed_at_the_next_row(tmp_path: Path, loss: str) -> None:
    path = tmp_path / "new" / "out.jsonl"
    with ResponseFile(path, WANTED) as file:
        file.append([row(0)])
        if loss == "folder":
            shutil.rmtree(path.parent)
        else:
            path.unlink()
        if loss == "another file in its place":
            path.write_text("other")
        with pytest.raises(OSError, match=r"out\.jsonl: cannot be written .* 1 rows had been"):
            file.append([row(1)])
        assert list(file.rows) == [("a", 1)]


def test_a_full_disk_leaves_whole_rows_and_a_beginning_that_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    size = len(json.dumps(row(0), ensure_ascii=False).encode()) + 1
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * size + size // 2, limits[1]))
    try:
        with ResponseFile(path, WANTED) as file:
            file.append([row(0), row(1)])
            with pytest.raises(OSError, match=r"cannot be written \(File too large\)"):
                file.append([row(2)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    with ResponseFile(path, WANTED) as file:
        assert file.has_dropped_tail and file.num_recovered == 2
        file.append([row(2)])
    assert read(path) == [row(0), row(1), row(2)]
