"""A real instruct model, from PyPI or the hub, and a few real questions with answers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from examples.smollm2.model import NoModelError, write_student

ANSWERED = {
    "What is the capital of France?": "Paris.",
    "Name three primary colours.": "Red, yellow and blue.",
    "How many legs has a spider?": "A spider has eight legs.\n\nInsects have six.",
    "Translate 'good morning' into Spanish.": "«Buenos días».",
    "Write a Python expression that squares x.": "```python\nx ** 2\n```",
    "Who wrote Hamlet?": "William Shakespeare wrote it, around 1600.",
    "What is 7 times 8?": "7 · 8 = 56",
    "Give a word that rhymes with cat.": "Hat 🎩",
}


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with student/ (float32), bf16/ and train.jsonl."""
    folder = tmp_path_factory.mktemp("real")
    try:
        write_student(folder / "student")
    except NoModelError as error:
        pytest.skip(str(error))
    shutil.copytree(folder / "student", folder / "bf16")
    model = AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.bfloat16)
    model.save_pretrained(folder / "bf16")
    rows = [
        {"content": [{"role": "user", "content": question}], "teacher_response": answer}
        for question, answer in ANSWERED.items()
    ]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
