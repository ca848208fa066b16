"""What a configuration computes in a step, and the command that plans it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_gad.config import RunConfig, to_toml
from megatron_gad.planning.shapes import read_shape
from megatron_gad.stage_config import AdversarialConfig, SeqkdConfig, WarmupConfig
from megatron_gad.workloads import configured_layout, count_rows, lengths_of, stage_works
from tests.tiny_run import make_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Return a configuration without a mistake, its files beside it."""
    return make_run(tmp_path_factory.mktemp("run"))


def test_each_stage_passes_the_rows_that_its_step_does() -> None:
    config = RunConfig(
        stages=("seqkd", "warmup", "adversarial"),
        seqkd=SeqkdConfig(batch_size=32),
        warmup=WarmupConfig(prompts_per_step=16, group_size=4, steps=9),
        adversarial=AdversarialConfig(prompts_per_step=16, group_size=8, epochs=3.0),
    )
    seqkd, warmup, adversarial = stage_works(config)
    assert (seqkd.student_trained, seqkd.num_samples, seqkd.discriminator_trained) == (32, 0, 0)
    # One row a prompt for the student; the teacher's and four sampled ones for the discriminator.
    assert (warmup.student_trained, warmup.discriminator_trained, warmup.num_samples) == (
        16,
        80,
        64,
    )
    assert (warmup.steps, warmup.num_steps(None)) == (9, 9)
    # The reference's pass; scoring is part of the training pass.
    assert (adversarial.student_forwards, adversarial.student_trained) == (128, 128)
    assert (adversarial.discriminator_forwards, adversarial.discriminator_trained) == (0, 144)
    assert (adversarial.num_steps(160), adversarial.num_steps(None)) == (30, None)


def test_options_of_the_algorithm_change_the_passes() -> None:
    base = RunConfig(
        stages=("adversarial",),
        adversarial=AdversarialConfig(
            *(1.0, None, 16, 8),
            discriminator_interval=4,
            extra_discriminator_steps=3,
            extra_prompts=10,
            student_updates=2,
        ),
    )
    (work,) = stage_works(base)
    assert work.discriminator_trained == 144 / 4 + 2 * 30
    assert work.discriminator_forwards == 144 * 3 / 4
    assert (work.num_samples, work.student_trained) == (128 + 30, 256)
    no_reference = replace(base, gad=replace(base.gad, kl_coef=0.0))
    assert stage_works(no_reference)[0].student_forwards == 0
    in_reward = replace(base, gad=replace(base.gad, kl_in="reward"))
    assert stage_works(in_reward)[0].student_forwards == 256
    split = replace(base, discriminator=replace(base.discriminator, split_groups=True))
    assert stage_works(split)[0].discriminator_forwards == 144
    frozen = replace(base, adversarial=replace(base.adversarial, freeze_discriminator=True))
    assert stage_works(frozen)[0].discriminator_trained == 0
    assert stage_works(frozen)[0].discriminator_forwards == 144


def test_layout_lengths_and_rows_come_from_the_configuration(run: RunConfig) -> None:
    config = replace(run, parallel=replace(run.parallel, tensor_model_parallel_size=2))
    layout = configured_layout(config, 8)
    assert (layout.tensor, layout.pipeline, layout.data) == (2, 1, 4)
    lengths = lengths_of(config.data, 150, 400)
    assert (lengths.prompt, lengths.response, lengths.max_row) == (128, 64, 192)
    assert count_rows(config.data) == 20
    assert count_rows(replace(config.data, path="hub:name")) is None


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    command = [sys.executable, "-m", "tools.plan_run", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_prints_a_plan_and_writes_it(run: RunConfig, tmp_path: Path) -> None:
    file, out = tmp_path / "run.toml", tmp_path / "plan.json"
    file.write_text(to_toml(run))
    done = plan(str(file), "--gpus", "2", "--gpu-type", "h100-80g", "--json", str(out))
    assert done.returncode == 0, done.stderr
    student = read_shape(Path(run.student.path)).num_parameters()
    assert f"{student:,} parameters" in done.stdout
    assert "Configured layout: TP 1 x PP 1 x DP 2" in done.stdout
    found = json.loads(out.read_text())
    assert found["student_parameters"] == student
    best = found["plans"][0]
    assert best["leaves"] == []
    seconds = [stage["step_seconds"] for stage in best["stages"]]
    assert seconds == [sum(stage["seconds"].values()) for stage in best["stages"]]
    # 20 prompts in steps of 8.
    assert best["stages"][0]["epoch_seconds"] == pytest.approx(2.5 * seconds[0])


def test_the_command_tells_what_it_cannot_plan(run: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(to_toml(run))
    done = plan(str(file), "--gpus", "0", "--gpu-type", "h100-80g", "--assume.mfu", "2")
    assert done.returncode == 2
    assert "--gpus 0" in done.stderr and "assume.mfu = 2.0" in done.stderr
    full = ("--assume.reserved-bytes", str(2**40))
    done = plan(str(file), "--gpus", "1", "--gpu-type", "h100-80g", *full)
    assert done.returncode == 1
    assert "nothing fits 1 x h100-80g" in done.stderr
