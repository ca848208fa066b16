"""Every option of the algorithm against plain transformers and torch, step by step."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.quickstart.student import StudentShape, make_student
from examples.tiny.prepare import prepare
from megatron_gad.training.parallel import Parallel, shut_down
from tests.oracle import layouts_worker
from tests.oracle.cases import CASES, Case
from tests.oracle.compare import compare
from tests.oracle.product import start
from tests.ranks import run_on_ranks
from tests.tiny import make_hf_folder
from tests.tiny_tokenizer import make_tokenizer


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, its data, and another model for the discriminator."""
    folder = tmp_path_factory.mktemp("assets")
    prepare(folder)
    shape = StudentShape(num_layers=2, width=48, num_heads=4, num_kv_heads=4, mlp_width=40)
    make_student(folder / "discriminator", 3, shape)
    make_byte_level(folder / "bytes")
    return folder


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


@pytest.fixture(scope="module")
def place(assets: Path) -> Iterator[Parallel]:
    """A world of one."""
    yield start(Case().options(assets, assets / "unused"))
    shut_down()


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_what_the_oracle_says(
    name: str, assets: Path, place: Parallel, tmp_path: Path
) -> None:
    compare(name, CASES[name], assets, tmp_path / "run", place)


def test_layouts_are_what_the_oracle_says(assets: Path, tmp_path: Path) -> None:
    """The worker compares on every rank, and fails with what differs."""
    run_on_ranks(layouts_worker.main, 2, assets, tmp_path)
