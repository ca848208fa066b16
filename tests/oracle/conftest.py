"""The students, and the texts that they learn from."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from examples.quickstart.student import StudentShape, make_student
from examples.tiny.prepare import prepare
from tests.tiny import make_hf_folder
from tests.tiny_tokenizer import make_tokenizer


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student and its data, another model each to judge and to teach, and a byte-level pair."""
    folder = tmp_path_factory.mktemp("assets")
    prepare(folder)
    shape = StudentShape(num_layers=2, width=48, num_heads=4, num_kv_heads=4, mlp_width=40)
    make_student(folder / "discriminator", 3, shape)
    make_teacher(folder / "teacher", folder / "student")
    make_byte_level(folder / "bytes")
    return folder


def make_teacher(folder: Path, student: Path) -> None:
    """Write a model of another family with the student's tokenizer and a few more rows for ids."""
    tokenizer = AutoTokenizer.from_pretrained(student)
    rows = len(tokenizer) + 7
    make_hf_folder(folder, "qwen3", rows, seed=5, num_hidden_layers=4, max_position_embeddings=128)
    tokenizer.save_pretrained(folder)


def make_byte_level(folder: Path) -> None:
    """Write a student whose responses are bytes at random, and texts that are cut in characters."""
    make_hf_folder(folder / "student", vocab_size=384, max_position_embeddings=128)
    make_tokenizer(folder / "student")
    rows = [
        {
            "content": [{"role": "user", "content": f"Wo liegt 東京? ({number})"}],
            "teacher_response": f"{'ab '[: number % 3]}東京 🙂 здравствуйте"[: 3 + 2 * number],
        }
        for number in range(24)
    ]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
