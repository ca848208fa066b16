"""The quickstart's files: prompts of three splits, and the teacher's responses to them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from examples.quickstart.robot_turns import Split, split_prompts, teacher_answer
from examples.quickstart.teacher_server import MODEL, serve
from megatron_gad.data.teacher.collect import collect
from megatron_gad.data.teacher.config import CollectConfig


@dataclass(frozen=True)
class DataFiles:
    """JSONL files of (id, content, teacher_response, ...) rows."""

    train: Path
    validation: Path
    test: Path


def collect_data(folder: str | Path, seed: int, split: Split | None = None) -> DataFiles:
    """Ask a teacher server for every prompt over HTTP; rows that are there are not asked again.

    split: the prompts; None takes the task's 2,500 / 300 / 400 of this seed.

    Raises:
        RuntimeError: some prompts got no response.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    split = split or split_prompts(seed)
    files = {name.name: root / f"{name.name}.jsonl" for name in fields(DataFiles)}
    with serve(seed) as base_url:
        for name, out in files.items():
            prompts = root / f"prompts_{name}.jsonl"
            write_prompts(prompts, name, getattr(split, name))
            report = collect(prompts, out, CollectConfig((base_url,), (MODEL,)))
            if not report.is_complete:
                raise RuntimeError(f"{out}: prompts without a response, see {out}.failed.jsonl")
    return DataFiles(**files)


def write_prompts(path: Path, name: str, prompts: Sequence[str]) -> None:
    """Write prompt rows as the collector reads them."""
    _write(path, [_prompt_row(name, index, prompt) for index, prompt in enumerate(prompts)])


def write_answered(
    path: Path,
    name: str,
    prompts: Sequence[str],
    seed: int,
    answer: Callable[[str, int], str] = teacher_answer,
) -> None:
    """Write rows with the teacher's responses as the collector writes them, without a server.

    answer: prompt and seed -> the teacher's text.
    """
    rows = [
        _prompt_row(name, index, prompt)
        | {
            "teacher_response": answer(prompt, seed),
            "finish_reason": "stop",
            "model": MODEL,
        }
        for index, prompt in enumerate(prompts)
    ]
    _write(path, rows)


def _prompt_row(name: str, index: int, prompt: str) -> dict[str, object]:
    return {"id": f"{name}-{index:05d}", "content": [{"role": "user", "content": prompt}]}


def _write(path: Path, rows: Sequence[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
