"""Bytes by role: against what the trainer allocates, published figures and hand counts."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.config.models import DiscriminatorConfig, StudentConfig
from megatron_gad.models.families import load_hf_config
from megatron_gad.planning.devices import GIB, Assumptions, usable_bytes
from megatron_gad.planning.layout import Layout
from megatron_gad.planning.memory import (
    Microbatch,
    activation_bytes,
    kv_bytes_per_token,
    model_state,
    precision_of,
)
from megatron_gad.planning.occupancy import memory_plans
from megatron_gad.planning.request import EngineUse
from megatron_gad.planning.shapes import read_shape
from megatron_gad.training.parallel import Parallel, initialize, shut_down
from megatron_gad.training.trainer import Trainer, TrainerSettings
from megatron_gad.types import Batch, Loss
from tests.tiny import make_hf_folder
from tests.unit.planning.requests import ADVERSARIAL, QWEN, TP4, make_request

BF16 = precision_of(bf16=True, fp8=False)


def total(output: object, batch: Batch) -> Loss:
    """Sum whatever the model puts out."""
    value = getattr(output, "logprobs", None)
    value = getattr(output, "scores", None) if value is None else value
    assert value is not None
    return Loss(value.sum(), torch.tensor(value.numel()), {})


def storages(tensors: list[Tensor]) -> dict[int, int]:
    """Return the bytes of each storage behind the tensors, once."""
    held = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in held}


def allocated(trainer: Trainer) -> dict[str, int]:
    """Return the bytes of the tensors behind parameters, gradients and optimizer."""
    parameters = [p for chunk in trainer.modules_to_read() for p in chunk.parameters()]
    weights = storages([p.detach() for p in parameters])
    optimizer = trainer.optimizer_to_read()
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    states = [(p, s) for part in parts for p, s in part.optimizer.state.items()]
    kept = [value for _, state in states for value in state.values() if isinstance(value, Tensor)]
    main = [parameter.detach() for parameter, _ in states]
    moved = {k: v for k, v in storages(kept + main).items() if k not in weights}
    gradients = [p.main_grad for p in parameters]  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "weights": sum(weights.values()),
        "gradients": sum(storages(gradients).values()),
        "optimizer": sum(moved.values()),
    }


def live_bytes() -> int:
    """Return the bytes of all tensors that the process holds, but for those that are frozen."""
    gc.collect()
    return sum(storages([x for x in gc.get_objects() if isinstance(x, Tensor)]).values())


def make_trainer(
    folder: Path, place: Parallel, settings: TrainerSettings, is_scorer: bool
) -> Trainer:
    """Return a model with a folder's weights; a scorer's last layer is read at all tokens."""
    shape = load_hf_config(folder)
    if is_scorer:
        trainer = Trainer.scorer(shape, DiscriminatorConfig(score="sum"), place, settings)
    else:
        trainer = Trainer.language_model(shape, StudentConfig(), place, settings)
    trainer.load_hf_weights(folder)
    return trainer


def full_rows(num_rows: int, width: int) -> Batch:
    """Return rows without padding."""
    tokens = torch.arange(num_rows * width).view(num_rows, width) % 97
    mask = torch.ones(num_rows, width, dtype=torch.bool)
    return Batch(tokens, torch.full((num_rows,), width), mask)


@pytest.mark.parametrize(
    ("family", "is_scorer", "bf16"),
    [
        ("qwen2", False, True),
        ("qwen2", True, False),
        ("qwen3", False, False),
        ("qwen3", True, True),
    ],
)
def test_a_trainer_holds_the_bytes_that_are_planned(
    tmp_path: Path, family: str, is_scorer: bool, bf16: bool
) -> None:
    folder = make_hf_folder(
        *(tmp_path, family),
        vocab_size=512,
        tie=family == "qwen3",
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
    )
    planned = model_state(read_shape(folder), Layout(), precision_of(bf16, False), is_scorer)
    place = initialize(ParallelConfig(), seed=0)
    gc.collect()
    gc.freeze()  # what was there before is not looked at
    try:
        settings = TrainerSettings(ParallelConfig(), ComputeConfig(bf16=bf16), seed=0)
        trainer = make_trainer(folder, place, settings, is_scorer)
        trainer.train(full_rows(2, 6), total)
        found = allocated(trainer)
        held = live_bytes()
    finally:
        gc.unfreeze()
        shut_down()
    # The plan takes a scorer's head, one row that is float32 in bf16 too, for one like the others.
    head = 2 * 64 if is_scorer and bf16 else 0
    assert found["weights"] == planned.weights + head
    assert found["gradients"] == pytest.approx(planned.gradients, rel=0.01)
    assert found["optimizer"] == pytest.approx(planned.optimizer, rel=0.01)
    # Nothing that the plan does not know stays allocated: rotary tables and counters are small.
    assert held == pytest.approx(planned.total, rel=0.05)


@pytest.mark.parametrize(
    ("family", "bf16", "is_packed", "ffn", "num_kv_heads"),
    [
        ("qwen2", False, True, 512, 4),
        ("qwen2", True, False, 1024, 1),
        ("llama", True, False, 512, 4),
        ("llama", True, True, 1024, 1),
    ],
)
def test_a_forward_pass_keeps_the_bytes_that_are_planned(
    tmp_path: Path, ffn: int, num_kv_heads: int, family: str, bf16: bool, is_packed: bool
) -> None:
    folder = make_hf_folder(
        *(tmp_path, family),
        hidden_size=128,
        intermediate_size=ffn,
        num_hidden_layers=8,
        num_key_value_heads=num_kv_heads,
        max_position_embeddings=128,
    )
    batch = Microbatch(tokens=2 * 96, count=1, chunk=0, is_joined=is_packed)
    precision = precision_of(bf16, fp8=False)
    planned = activation_bytes(read_shape(folder), Layout(), precision, batch)
    place = initialize(ParallelConfig(), seed=0)
    try:
        compute = ComputeConfig(bf16=bf16, pack_sequences=is_packed)
        settings = TrainerSettings(ParallelConfig(), compute, seed=0)
        trainer = make_trainer(folder, place, settings, is_scorer=True)
        weights = storages([p for chunk in trainer.modules_to_read() for p in chunk.parameters()])
        kept: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            trainer.train(full_rows(2, 96), total)
    finally:
        shut_down()
    measured = sum(size for key, size in storages(kept).items() if key not in weights)
    # The final norm and the head keep a little too.
    assert measured == pytest.approx(planned, rel=0.05)


@pytest.mark.parametrize(("model", "gib"), [("7B", 43), ("14B", 83), ("32B", 183)])
def test_both_states_have_the_known_size_at_tp4_on_eight_gpus(model: str, gib: int) -> None:
    states = [model_state(QWEN[model], TP4, BF16, is_scorer) for is_scorer in (False, True)]
    assert sum(state.total for state in states) / GIB == pytest.approx(gib, rel=0.15)


def test_the_distributed_optimizer_shares_out_its_states_alone() -> None:
    whole = model_state(QWEN["7B"], Layout(tensor=4, data=2), BF16, is_scorer=False)
    shared = model_state(QWEN["7B"], TP4, BF16, is_scorer=False)
    assert (shared.weights, shared.gradients) == (whole.weights, whole.gradients)
    assert shared.optimizer == pytest.approx(whole.optimizer / 2)
    context = Layout(tensor=4, data=2, context=2, distributed_optimizer=True)
    quarter = model_state(QWEN["7B"], context, BF16, is_scorer=False)
    assert quarter.optimizer == pytest.approx(whole.optimizer / 4)


def test_keys_and_values_of_a_token_take_their_known_bytes() -> None:
    # 2 x 28 layers x 4 heads x 128 x 2 bytes.
    assert kv_bytes_per_token(QWEN["7B"], Layout(), BF16) == 57_344
    assert kv_bytes_per_token(QWEN["7B"], Layout(engine_tensor=4), BF16) == 14_336


def test_activations_follow_the_formula() -> None:
    shape, batch = QWEN["7B"], Microbatch(tokens=200, count=8, chunk=0)
    layer = 200 * (8 * 3584 + 6 * 128 * (28 + 4) + 8 * 18944)
    assert activation_bytes(shape, Layout(), BF16, batch) == 28 * layer
    assert activation_bytes(shape, TP4, BF16, batch) == 28 * layer // 4
    # Four stages of seven layers; the first holds four microbatches.
    assert activation_bytes(shape, Layout(pipeline=4), BF16, batch) == 7 * layer * 4
    assert activation_bytes(shape, Layout(context=4), BF16, batch) == 7 * layer
    # Interleaved in two, 1 + 3 / 8 times as many.
    interleaved = Layout(pipeline=4, virtual=2)
    assert activation_bytes(shape, interleaved, BF16, batch) == 7 * layer * 5.5
    full = activation_bytes(shape, Layout(recompute="full"), BF16, batch)
    assert full == 28 * 200 * 3584 * 2 + layer
    logits = activation_bytes(shape, Layout(), BF16, Microbatch(200, 8, chunk=50)) - 28 * layer
    assert logits == 152_064 * (50 * (4 + 4) + 2 * 3584 * 2)


def test_a_bound_on_tokens_is_what_a_microbatch_holds() -> None:
    def activations(**more: Any) -> tuple[int, int]:
        request = make_request("7B", max_tokens_per_microbatch=10_000, **more)
        nobody, *_ = memory_plans(request, TP4)
        phases = {phase.phase: phase.by_role["activations"] for phase in nobody.phases[2:]}
        return phases["student"], phases["discriminator"]

    # 28 layers, a quarter of 204,800 bytes a token; logits of 1024 tokens over 38,016 columns.
    token = 28 * (8 * 3584 + 6 * 128 * (28 + 4) + 8 * 18944) // 4
    assert token == 28 * 204_800 // 4
    logits = 2 * 1024 * 38_016 * 4 + 2 * 38_016 * 3584 * 2
    # A group of 9 rows at 2048 + 1536 tokens is taken whole, though it has more.
    assert activations() == (10_000 * token + logits, 9 * 3584 * token)
    assert activations(split_groups=True)[1] == 10_000 * token
    # The number of rows is not read then.
    assert activations(micro_batch_size=64) == activations()


@pytest.mark.parametrize(("model", "stays"), [("7B", True), ("14B", True), ("32B", False)])
def test_up_to_14b_both_states_stay_on_an_h200_and_32b_alternates(model: str, stays: bool) -> None:
    request = make_request(model, "h200-141g", micro_batch_size=1, split_groups=True)
    fitting = [plan for plan in memory_plans(request, TP4) if not plan.missing]
    assert any(not plan.leaves & {"student", "discriminator"} for plan in fitting) == stays
    assert fitting, "alternating has to fit"


def test_the_cache_gets_what_the_phases_leave_it() -> None:
    request = make_request("7B", "h200-141g")
    everything, *_ = memory_plans(request, TP4)
    alone = next(plan for plan in memory_plans(request, TP4) if "engine" in plan.leaves)
    usable = usable_bytes(request.device, Assumptions())
    for plan, phase in ((everything, 2), (alone, 1)):
        cache = plan.phases[1].by_role["kv_cache"]
        assert cache == plan.cache_tokens * kv_bytes_per_token(request.student, TP4, BF16)
        free = usable - plan.phases[phase].total
        assert plan.missing == 0
        # Rounded down to tokens, or all rows of a replica at their longest.
        assert 0 <= free < 57_344 or plan.cache_tokens == ROWS_OF_A_REPLICA * (2048 + 1536)
    assert alone.cache_tokens >= everything.cache_tokens
    assert [phase.phase for phase in alone.phases if "kv_cache" in phase.by_role] == ["rollout"]


ROWS_OF_A_REPLICA = 256


def test_an_engine_that_samples_while_training_works_keeps_its_memory() -> None:
    ahead = replace(ADVERSARIAL, overlaps=True)
    use = EngineUse("embedded", cache_tokens=1000)
    plans = [*memory_plans(make_request("7B", engine=use, stages=(ahead,)), TP4)]
    assert all("engine" not in plan.leaves for plan in plans)
    phases = plans[0].phases
    assert [phase.by_role["kv_cache"] for phase in phases] == [1000 * 57_344] * len(phases)
    turns = [*memory_plans(make_request("7B", engine=use), TP4)]
    assert any("engine" in plan.leaves for plan in turns)


def test_weights_are_kept_on_the_host_to_start_servers_again() -> None:
    servers = make_request("7B", engine=EngineUse(keeps_weights=True))
    assert {plan.engine_host_bytes for plan in memory_plans(servers, TP4)} == {2 * 7_615_616_512}
    others = make_request("7B", engine=EngineUse("embedded"))
    assert {plan.engine_host_bytes for plan in memory_plans(others, TP4)} == {0}


def test_an_engine_elsewhere_has_a_device_for_its_weights_and_its_cache() -> None:
    request = make_request("7B", engine=EngineUse("elsewhere"))
    nobody, *_ = memory_plans(request, replace(TP4, engines=1))
    usable = usable_bytes(request.device, Assumptions())
    assert nobody.cache_tokens == (usable - 2 * 7_615_616_512) // 57_344
    assert all(not phase.by_role.get("engine") for phase in nobody.phases)
