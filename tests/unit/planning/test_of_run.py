"""What a run's engine takes of its devices, and what a run is told about its phases."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_gad.config.further_stages import PreferenceConfig
from megatron_gad.config.run import RunConfig
from megatron_gad.config.run_control import ScheduleConfig
from megatron_gad.planning.choice import Residency, describe_residency
from megatron_gad.planning.describe import describe_run
from megatron_gad.planning.devices import GIB
from megatron_gad.planning.from_config import configured_layout
from megatron_gad.planning.of_run import plan_residency
from tests.tiny import make_hf_folder
from tests.tiny_run import make_run

# Of the tiny run's student: a layer's query, key, value and output with biases, norms, and gate, up
# and down; two layers; embedding and head 384 x 32; the last norm.
STUDENT = 2 * (3072 + 64 + 64 + 4608) + 2 * 384 * 32 + 32
# Keys and values of a token: 2 x 2 layers x 2 heads x 8 x 4 bytes.
TOKEN = 256


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Return a configuration without a mistake, its files beside it."""
    return make_run(tmp_path_factory.mktemp("run"))


def sampled_by(run: RunConfig, engine: Any, **sglang: Any) -> RunConfig:
    """Return the configuration with another engine."""
    rollout = replace(run.rollout, engine=engine)
    return replace(run, rollout=rollout, sglang=replace(run.sglang, **sglang))


def engine_bytes(residency: Residency) -> list[int]:
    """Return the weights and cache of the engine in each phase, together."""
    phases = [phase.by_role for phase in residency.memory.phases]
    return [roles.get("engine", 0) + roles.get("kv_cache", 0) for roles in phases]


def test_each_engine_takes_its_own_share_of_a_device(run: RunConfig) -> None:
    def taken(config: RunConfig) -> list[int]:
        return engine_bytes(plan_residency(config, 1, "h100-80g"))

    # Servers: half the device from start to end, in whole tokens.
    share = 81_559 * 2**20 // 2
    held = 4 * STUDENT + (share - 4 * STUDENT) // TOKEN * TOKEN
    assert taken(sampled_by(run, "sglang")) == [held] * 4
    assert taken(sampled_by(run, "sglang", urls=("http://other:1",))) == [0] * 4
    assert taken(sampled_by(run, "replay")) == [0] * 4
    # The 8 x 8 rows of a step at 192 tokens while it samples, else its weights.
    weights = 4 * STUDENT
    assert taken(run) == [weights, weights + 64 * 192 * TOKEN, weights, weights]


def test_servers_have_their_share_of_the_whole_device_where_a_run_may_use_less(
    run: RunConfig,
) -> None:
    config = sampled_by(run, "sglang", mem_fraction_static=0.25)
    config = replace(config, schedule=ScheduleConfig(device_memory_gib=40.0))
    residency = plan_residency(config, 1, "h100-80g")
    assert residency.memory.phases[0].usable == 40 * GIB
    held = 4 * STUDENT + (81_559 * 2**20 // 4 - 4 * STUDENT) // TOKEN * TOKEN
    assert engine_bytes(residency) == [held] * 4


def test_copies_of_the_engine_are_those_that_a_run_starts_or_is_pointed_to(run: RunConfig) -> None:
    parallel = replace(run.parallel, tensor_model_parallel_size=2)

    def engines(engine: str, **sglang: Any) -> tuple[int, int]:
        config = replace(sampled_by(run, engine, **sglang), parallel=parallel)
        layout = configured_layout(config, 8, has_experts=False)
        return layout.engine_tensor, layout.num_engines

    # Two ranks hold a copy of the model, so there are four.
    assert engines("sglang", num_servers=2) == (1, 8)
    assert engines("sglang", tensor_parallel_size=2) == (2, 4)
    assert engines("sglang", urls=("http://a:1",) * 12) == (1, 12)
    assert engines("embedded", tensor_parallel_size=2, num_servers=2) == (1, 4)


def test_each_phase_is_told_with_its_seconds_on_a_known_gpu(run: RunConfig) -> None:
    config = replace(run, schedule=ScheduleConfig(leaves=("student",)))
    residency = plan_residency(config, 1, "h100-80g")
    warmup, adversarial = residency.stages
    # Weights and moments out and in over 40 % of PCIe; the reference's weights in besides.
    moves = 2 * 12 * STUDENT / (64e9 * 0.4)
    assert warmup.moves == pytest.approx(moves)
    assert adversarial.moves == pytest.approx(moves + 4 * STUDENT / (64e9 * 0.4))
    lines = [*describe_residency(residency)]
    assert lines[:2] == ["as schedule.leaves says", "leaves the device: student"]
    (told,) = (line for line in lines if line.startswith("one warmup step: "))
    assert f"moves {moves:.2g} s)" in told
    assert all(f"{phase} " in told for phase in ("swap", "rollout", "discriminator", "student"))
    assert any("the embedded engine takes longer" in line for line in lines)
    assert told in describe_run(config, 1, "h100-80g")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's speed is known")
def test_where_the_speed_is_not_known_seconds_are_left_to_the_run(run: RunConfig) -> None:
    residency = plan_residency(run, 1)
    assert residency.stages == ()
    (line,) = (line for line in describe_residency(residency) if "seconds" in line)
    assert "metrics time/*" in line and "tools/plan_run.py" in line
    # An A100 has no FP8.
    fp8 = replace(run, compute=replace(run.compute, bf16=True, fp8_format="hybrid"))
    assert plan_residency(fp8, 1, "a100-80g").stages == ()


def test_a_teacher_takes_memory_in_its_turn_and_its_head_in_the_students(
    run: RunConfig, tmp_path: Path
) -> None:
    """Of four layers and width 64, beside a student of two and 32; it rests on the host."""
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
    teacher = make_hf_folder(tmp_path, vocab_size=390, max_position_embeddings=256, **shape)
    taught = replace(run.white_box, teacher=str(teacher), prompts_per_step=8)
    config = replace(run, stages=("white_box",), white_box=taught)
    alone = replace(run, stages=("preference",), preference=PreferenceConfig(prompts_per_step=8))
    phases = {p.phase: p.by_role for p in plan_residency(config, 1, "h100-80g").memory.phases}
    others = {p.phase: p.by_role for p in plan_residency(alone, 1, "h100-80g").memory.phases}
    # Query, key, value and output with biases, norms, and gate, up and down.
    layer = 64 * (64 + 32 + 32 + 64) + 128 + 128 + 3 * 64 * 96
    weights = 4 * layer + 2 * 390 * 64 + 64
    assert phases["teacher"]["teacher"] == 4 * weights
    assert phases["teacher"]["student"] == phases["rollout"]["student"]
    assert phases["student"]["teacher"] == 4 * 390 * 64
    assert "teacher" not in phases["rollout"] and "teacher" not in others
    memory = plan_residency(config, 1, "h100-80g").memory
    assert memory.host_bytes == 4 * weights + 4 * 390 * 64
    words = "\n".join(describe_residency(plan_residency(config, 1, "h100-80g")))
    assert "teacher: " in words


def test_a_teachers_pass_takes_seconds_by_its_size(run: RunConfig, tmp_path: Path) -> None:
    found: list[float] = []
    for num_layers in (2, 8):
        folder = tmp_path / str(num_layers)
        make_hf_folder(
            folder, vocab_size=384, max_position_embeddings=256, num_hidden_layers=num_layers
        )
        taught = replace(run.white_box, teacher=str(folder), prompts_per_step=8)
        config = replace(run, stages=("white_box",), white_box=taught)
        (stage,) = plan_residency(config, 1, "h100-80g").stages
        found.append(stage.student)
    # The student's forward and backward are three of its own size; the head counts too.
    assert 1.2 < found[1] / found[0] < 2.0
