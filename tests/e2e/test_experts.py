"""A run of a mixture of experts whose experts are shared out gives the numbers of one rank."""

import shutil
from pathlib import Path

from megatron_gad.models.families import load_hf_config
from tests.e2e import tiny_run
from tests.e2e.test_layouts import assert_same_numbers
from tests.tiny import make_hf_folder


def prepare_mixture(save: Path) -> None:
    """Prepare a tiny run, with a Qwen3-MoE in place of its student."""
    shutil.copytree(tiny_run.assets(), save / "assets")
    student = save / "assets" / "student"
    shape = load_hf_config(student)
    make_hf_folder(
        student,
        "qwen3_moe",
        shape.vocab_size,
        max_position_embeddings=shape.max_position_embeddings,
    )


def test_a_run_at_ep2_gives_the_numbers_of_one_rank(tmp_path: Path) -> None:
    flags = ["--adversarial.steps", "2", "--seqkd.steps", "1", "--warmup.steps", "2"]
    for name in ("one", "two"):
        prepare_mixture(tmp_path / name)
    one_rank = tiny_run.run(tmp_path / "one", *flags)
    shared = ["--expert-model-parallel-size", "2"]
    records = tiny_run.run(tmp_path / "two", *flags, *shared, num_ranks=2)
    assert [r["stage"] for r in records] == ["seqkd"] + ["warmup"] * 2 + ["adversarial"] * 2
    assert_same_numbers(records, one_rank)
    assert max(r.get("engine/logprob_gap_max", 0.0) for r in records) < 1e-4
