"""Make the student and the data of the tiny example: ``python -m examples.tiny.prepare OUT``.

Writes OUT/student (a Hugging Face folder), OUT/train.jsonl and OUT/eval.jsonl. The same seed gives
the same bytes. The student has four layers and two key/value heads, so that it can be split over
two tensor ranks, and over two pipeline ranks of two interleaved chunks.
"""

from pathlib import Path
from typing import Annotated

import tyro

from examples.quickstart.data import write_answered
from examples.quickstart.robot_turns import split_prompts
from examples.quickstart.student import StudentShape, make_student

SHAPE = StudentShape(num_layers=4, width=32, num_heads=4, num_kv_heads=2, mlp_width=64)
NUM_TRAIN = 64
NUM_EVAL = 16


def prepare(out: Annotated[Path, tyro.conf.Positional], seed: int = 0) -> None:
    """Write the tiny example's student and data.

    Args:
        out: folder to write to.
        seed: of the weights, the prompts and the teacher's layouts.
    """
    out.mkdir(parents=True, exist_ok=True)
    split = split_prompts(seed, num_train=NUM_TRAIN, num_validation=NUM_EVAL, num_test=0)
    write_answered(out / "train.jsonl", "train", split.train, seed)
    write_answered(out / "eval.jsonl", "eval", split.validation, seed)
    make_student(out / "student", seed, SHAPE)


if __name__ == "__main__":
    tyro.cli(prepare)
