"""What a configuration computes in a step, and the command that plans it."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from megatron_gad.config.command_line import load_config
from megatron_gad.config.run import RunConfig, StageName
from megatron_gad.config.run_control import ScheduleConfig
from megatron_gad.config.stages import AdversarialConfig, SeqkdConfig, WarmupConfig
from megatron_gad.config.toml import to_toml
from megatron_gad.planning.devices import GIB
from megatron_gad.planning.from_config import configured_layout, count_rows, lengths_of, stage_works
from megatron_gad.planning.of_run import plan_residency
from megatron_gad.planning.shapes import read_shape
from tests.tiny_run import make_run
from tools.plan_run import main

ROOT = Path(__file__).parents[3]


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


def test_the_cost_of_a_prompt_is_what_the_documentation_says() -> None:
    """Samples and rows that only pass forward count once, rows that train three times."""
    by_hand: dict[StageName, int] = {
        "seqkd": 3,
        "preference": 1 + 2 + 2 * 3,
        "white_box": 1 + 3,
        "warmup": 8 + 9 * 3 + 3,
        "best_of_n": 8 + 9 + 3,
        "adversarial": 8 + 9 * 3 + 8 + 8 * 3,
    }
    table = (ROOT / "docs/objectives.md").read_text().split("## The stage")[1]
    for work, expected in zip(
        stage_works(RunConfig(stages=tuple(by_hand))), by_hand.values(), strict=True
    ):
        forwards = work.num_samples + work.student_forwards + work.discriminator_forwards
        trained = work.student_trained + work.discriminator_trained
        cost = (forwards + 3 * trained) / work.num_prompts
        assert cost == expected
        (row,) = (line for line in table.splitlines() if line.startswith(f"| `{work.kind}` "))
        assert row.split("|")[4].split()[0].rstrip(",") == f"{cost:g}"
        assert work.teacher_forwards == work.num_prompts * (work.kind == "white_box")
    simpo = replace(RunConfig().preference, loss="simpo")
    (work,) = stage_works(RunConfig(stages=("preference",), preference=simpo))
    assert (work.num_samples, work.student_forwards, work.student_trained) == (256, 0, 512)


def test_options_of_the_algorithm_change_the_passes() -> None:
    base = RunConfig(
        stages=("adversarial",),
        adversarial=AdversarialConfig(
            epochs=1.0,
            prompts_per_step=16,
            group_size=8,
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
    assert work.has_reference
    (no_reference,) = stage_works(replace(base, gad=replace(base.gad, kl_coef=0.0)))
    assert (no_reference.student_forwards, no_reference.has_reference) == (0, False)
    in_reward = replace(base, gad=replace(base.gad, kl_in="reward"))
    assert stage_works(in_reward)[0].student_forwards == 256
    split = replace(base, discriminator=replace(base.discriminator, split_groups=True))
    assert stage_works(split)[0].discriminator_forwards == 144
    never = replace(base.adversarial, discriminator_interval=0, extra_discriminator_steps=0)
    frozen = replace(base, adversarial=never)
    assert stage_works(frozen)[0].discriminator_trained == 0
    assert stage_works(frozen)[0].discriminator_forwards == 144


def test_layout_lengths_and_rows_come_from_the_configuration(run: RunConfig) -> None:
    config = replace(run, parallel=replace(run.parallel, tensor_model_parallel_size=2))
    layout = configured_layout(config, 8, has_experts=False)
    assert (layout.tensor, layout.pipeline, layout.data) == (2, 1, 4)
    whole = replace(config.parallel, expert_model_parallel_size=2, expert_tensor_parallel_size=1)
    experts = configured_layout(replace(config, parallel=whole), 8, has_experts=True)
    assert (experts.expert, experts.expert_tensor, layout.expert_tensor) == (2, 1, None)
    lengths = lengths_of(config.data, 150, 400)
    assert (lengths.prompt, lengths.response, lengths.max_row) == (128, 64, 192)
    assert count_rows(config.data) == 20
    assert count_rows(replace(config.data, path="hub:name")) is None


def laid_out(run: RunConfig, student: int, discriminator: int | None, **more: bool) -> RunConfig:
    """Return the configuration with these tensor parallel sizes."""
    parallel = replace(run.parallel, tensor_model_parallel_size=student, **more)
    own = replace(run.discriminator, tensor_model_parallel_size=discriminator)
    return replace(run, parallel=parallel, discriminator=own)


# Of the tiny run's models: query, key, value and output 2 x 32 x 8 x (4 + 2) and biases 8 x 8,
# norms 64, gate, up and down 3 x 32 x 48; two layers; embedding 384 x 32, the last norm 32, and the
# student's head 384 x 32 or the discriminator's 32. A rank has half of all matrices and biases.
HALF_STUDENT = 2 * ((3072 + 64) // 2 + 64 + 4608 // 2) + 2 * 192 * 32 + 32
DISCRIMINATOR = 2 * (3072 + 64 + 64 + 4608) + 384 * 32 + 32 + 32


def test_each_model_has_the_memory_of_its_own_layout(run: RunConfig) -> None:
    memory = plan_residency(laid_out(run, student=2, discriminator=1), world_size=2).memory
    phases = {phase.phase: phase.by_role for phase in memory.phases}
    # Weights, gradients and two moments of 4 bytes each; who is not at work has no gradients.
    assert phases["discriminator"]["student"] == 12 * HALF_STUDENT == 242_304
    assert phases["discriminator"]["discriminator"] == 16 * DISCRIMINATOR == 447_488
    assert phases["student"]["student"] == 16 * HALF_STUDENT
    assert phases["student"]["discriminator"] == 12 * DISCRIMINATOR
    # As many tokens as four rows at their longest have, which a group of 128 + 9 x 64 has not; in
    # both layers 8 h + 6 (a + k) + 2 a + 8 f, 4 bytes.
    layer = 4 * (128 + 64) * (8 * 32 + 6 * 8 * (4 + 2) + 2 * 8 * 4 + 8 * 48) * 4 // 2
    assert phases["discriminator"]["activations"] == 2 * layer == 3_047_424
    # Four rows of the teacher, which share no prompt, heads and widths halved, and the logits of
    # 768 tokens over half the vocabulary.
    layer = 4 * 192 * (8 * 32 + 3 * 8 * (4 + 2) + 8 * 4 + 4 * 48) * 4 // 2
    logits = 2 * 768 * 192 * 4 + 2 * 192 * 32 * 4
    assert phases["student"]["activations"] == 2 * layer + logits == 3_145_728


def test_a_bound_on_tokens_bounds_the_memory_of_a_run(run: RunConfig) -> None:
    config = replace(run, compute=replace(run.compute, max_tokens_per_microbatch=1000))
    memory = plan_residency(config, world_size=1).memory
    phases = {phase.phase: phase.by_role for phase in memory.phases}
    token = 2 * (8 * 32 + 6 * 8 * (4 + 2) + 2 * 8 * 4 + 8 * 48) * 4 // 2
    logits = 2 * 1000 * 384 * 4 + 2 * 384 * 32 * 4
    assert phases["student"]["activations"] == 1000 * token + logits
    assert phases["discriminator"]["activations"] == 1000 * token
    # A group that has more is taken whole: a prompt of 128 tokens and 9 responses of 64, or 9 rows.
    for shares, tokens in ((True, 128 + 9 * 64), (False, 9 * 192)):
        compute = replace(run.compute, max_tokens_per_microbatch=100, share_prompts=shares)
        small = plan_residency(replace(run, compute=compute), world_size=1).memory
        phases = {phase.phase: phase.by_role for phase in small.phases}
        assert phases["discriminator"]["activations"] == tokens * token
    # What attention returns is joined where rows are packed, in layers that are not TE's.
    token -= 2 * 2 * 8 * 4 * 4 // 2
    for changed in ({"pack_sequences": False}, {"transformer_impl": "transformer_engine"}):
        padded = replace(config, compute=replace(config.compute, **changed))
        phases = {phase.phase: phase.by_role for phase in plan_residency(padded, 1).memory.phases}
        assert phases["student"]["activations"] == 1000 * token + logits


def test_each_model_shares_its_optimizer_over_its_own_data_ranks(run: RunConfig) -> None:
    config = laid_out(run, student=2, discriminator=1, use_distributed_optimizer=True)
    memory = plan_residency(config, world_size=2).memory
    assert memory.student.optimizer == 8 * HALF_STUDENT
    assert memory.discriminator is not None
    assert memory.discriminator.optimizer == 8 * DISCRIMINATOR // 2


def test_who_leaves_follows_from_both_layouts(run: RunConfig) -> None:
    def leaves(discriminator: int | None, num_bytes: int) -> frozenset[str]:
        schedule = ScheduleConfig(device_memory_gib=num_bytes / GIB)
        config = replace(laid_out(run, 2, discriminator), schedule=schedule)
        return plan_residency(config, world_size=2).memory.leaves

    # The student's phase, with the engine's weights, those of the whole student.
    engine = 4 * (2 * (3072 + 64 + 64 + 4608) + 2 * 384 * 32 + 32)
    needed = 16 * HALF_STUDENT + 12 * DISCRIMINATOR + 3_145_728 + engine
    assert leaves(1, needed) == frozenset()
    assert leaves(1, needed - 1) != frozenset()
    assert leaves(None, needed - 1) == frozenset()


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def plan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Return the command as a function of its arguments."""

    def run_command(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["plan_run", *arguments])
        status = main()
        out, err = capsys.readouterr()
        return Done(status, out, err)

    return run_command


def test_the_command_prints_a_plan_and_writes_it(plan, run: RunConfig, tmp_path: Path) -> None:
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


def test_the_command_plans_a_layout_of_the_discriminators_own(
    plan, run: RunConfig, tmp_path: Path
) -> None:
    file, out = tmp_path / "run.toml", tmp_path / "plan.json"
    config = laid_out(run, student=2, discriminator=1)
    file.write_text(to_toml(config))
    done = plan(str(file), "--gpus", "2", "--gpu-type", "h100-80g", "--json", str(out))
    assert done.returncode == 0, done.stderr
    both = "TP 2 x PP 1 x DP 1, engine TP 1 x 1; the discriminator TP 1 x PP 1 x DP 2"
    assert f"Configured layout: {both}" in done.stdout
    assert "take the\nsizes out of [discriminator]" in done.stdout
    found = json.loads(out.read_text())
    phases = found["configured"]["bytes_by_phase"]
    assert phases["discriminator"]["discriminator"] == 16 * DISCRIMINATOR
    bare = tmp_path / "bare.toml"
    bare.write_text(to_toml(run))
    flagged, _ = load_config([str(bare), *found["configured"]["flags"].split()])
    assert flagged.parallel == config.parallel
    assert flagged.discriminator_layout(has_experts=False) == config.discriminator_layout(
        has_experts=False
    )


def test_the_command_plans_the_engine_and_the_residency_that_are_configured(
    plan, run: RunConfig, tmp_path: Path
) -> None:
    file, out = tmp_path / "run.toml", tmp_path / "plan.json"
    config = replace(
        laid_out(run, student=2, discriminator=None),
        rollout=replace(run.rollout, engine="sglang"),
        sglang=replace(run.sglang, tensor_parallel_size=2, mem_fraction_static=0.005),
        adversarial=replace(run.adversarial, overlap=True),
        schedule=ScheduleConfig(leaves=("student",), device_memory_gib=4.0),
    )
    file.write_text(to_toml(config))
    done = plan(str(file), "--gpus", "4", "--gpu-type", "h100-80g", "--json", str(out))
    assert done.returncode == 0, done.stderr
    assert "Configured layout: TP 2 x PP 1 x DP 2, engine TP 2 x 2" in done.stdout
    assert "both take longer than estimated" in done.stdout
    found = json.loads(out.read_text())
    configured = found["configured"]
    assert (found["usable_bytes"], configured["leaves"]) == (4 * GIB, ["student"])
    # A server has that share of the whole device: half the student's weights, and half a token's
    # keys and values, 2 x 2 layers x 2 heads x 8 x 4 bytes.
    weights = 4 * (2 * (3072 + 64 + 64 + 4608) + 2 * 384 * 32 + 32) // 2
    tokens = (int(0.005 * 81_559 * 2**20) - weights) // (256 // 2)
    assert configured["bytes_by_phase"]["student"]["kv_cache"] == tokens * 128
    assert configured["engine_host_bytes"] == 2 * weights
    warmup, adversarial = configured["stages"]
    seconds = adversarial["seconds"]
    training = seconds["discriminator"] + seconds["student"] + seconds["moves"]
    assert adversarial["step_seconds"] == seconds["swap"] + max(seconds["rollout"], training)
    assert warmup["step_seconds"] == sum(warmup["seconds"].values())
    # 20 prompts in steps of 8.
    by_phase = {phase: 2.5 * each for phase, each in seconds.items()}
    assert adversarial["epoch_seconds_by_phase"] == pytest.approx(by_phase)
    assert all("engine" not in each["leaves"] for each in found["plans"])


def test_the_command_tells_what_it_cannot_plan(plan, run: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(to_toml(run))
    done = plan(str(file), "--gpus", "0", "--gpu-type", "h100-80g", "--assume.mfu", "2")
    assert done.returncode == 2
    assert "--gpus 0" in done.stderr and "assume.mfu = 2.0" in done.stderr
    full = ("--assume.reserved-bytes", str(2**40))
    done = plan(str(file), "--gpus", "1", "--gpu-type", "h100-80g", *full)
    assert done.returncode == 1
    assert "nothing fits 1 x h100-80g" in done.stderr
