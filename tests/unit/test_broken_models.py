"""Weights that are no numbers are said as such, before a stage begins."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_gad.config.command_line import load_config
from megatron_gad.config.stage_section import StageSection, stage_kinds
from megatron_gad.runtime.run import Run
from megatron_gad.stages.begin import begin_stage, open_run
from megatron_gad.training import parallel

BROKEN = "model.layers.2.mlp.up_proj.weight"


@pytest.fixture
def broken(assets: Path, tmp_path: Path) -> Path:
    """The student with one NaN."""
    folder = shutil.copytree(assets / "student", tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights[BROKEN][3, 5] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def open_with(assets: Path, save: Path, place: parallel.Parallel, *flags: str) -> Run:
    words = ["examples/tiny/run.toml", "--save", str(save), "--no-tensorboard", *flags]
    words += ["--data.path", str(assets / "train.jsonl")]
    words += ["--data.eval-path", str(assets / "eval.jsonl")]
    return open_run(load_config(words)[0], place)


@pytest.mark.parametrize("stage", stage_kinds(), ids=lambda kind: kind.name)
def test_a_nan_in_the_student_is_said_before_any_stage(
    stage: type[StageSection], assets: Path, broken: Path, tmp_path: Path, place: parallel.Parallel
) -> None:
    flags = ("--stages", stage.name, "--student.path", str(broken))
    flags += (f"--{stage.name}.{stage.batch_key.replace('_', '-')}", "8")
    with pytest.raises(ValueError, match=rf"student\.path = .*broken' holds .* in {BROKEN}; get"):
        open_with(assets, tmp_path / "run", place, *flags)


def test_a_nan_in_the_discriminator_is_said_when_its_stage_begins(
    assets: Path, broken: Path, tmp_path: Path, place: parallel.Parallel
) -> None:
    flags = ["--stages", "warmup", "--student.path", str(assets / "student")]
    run = open_with(assets, tmp_path / "run", place, *flags, "--discriminator.path", str(broken))
    with pytest.raises(ValueError, match=rf"discriminator\.path = .*broken' holds .* {BROKEN};"):
        begin_stage(run)
    run.close()
