"""A GPU computes what transformers computes on the CPU, in every precision that it offers.

Written where no GPU was: none of these bounds has met one.
"""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_gad.algorithms.policy import PolicyOptions, policy_loss
from megatron_gad.checks.compute import RECIPE_CAPABILITY, check_compute, this_machine
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.embedded import EmbeddedEngine
from megatron_gad.training.parallel import Parallel
from megatron_gad.types import Batch, Prompt
from tests.hf_reference import HfStudent, reference_gradients
from tests.tiny_training import gradients, make_student, student_batch, with_equal_prompts

V = 512
LOSS = partial(policy_loss, options=PolicyOptions(kl_coef=0.1))
TE = "transformer_engine"


def learned(
    folder: Path, place: Parallel, batch: Batch | None = None, **compute: Any
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one step on the GPU; skips what this machine does not take."""
    config = ComputeConfig(**compute)
    missing = [*check_compute(config, this_machine())]
    if missing:
        pytest.skip(missing[0])
    student = make_student(folder, place, compute=config)
    batch = batch or student_batch(V)
    loss = student.train(batch, LOSS, temperature=0.8).metrics["loss"]
    return loss, {name: value.float().cpu() for name, value in gradients(student).items()}


def largest_relative(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest distance of a gradient to the expected one, over its length."""
    assert ours.keys() == expected.keys()
    return max(
        float((ours[name] - value).norm() / value.norm().clamp(min=1e-9))
        for name, value in expected.items()
    )


@pytest.mark.parametrize(
    ("impl", "bf16", "bound"),
    [("local", False, 1e-4), (TE, False, 5e-3), ("local", True, 5e-2), (TE, True, 5e-2)],
)
def test_loss_and_gradients_equal_those_of_the_cpu(
    folder: Path, place: Parallel, impl: str, bf16: bool, bound: float
) -> None:
    """Torch leaves TF32 units off. Transformer Engine takes them for all float32 products, which
    rounds what goes in to 10 bits of mantissa."""
    loss, found = learned(folder, place, transformer_impl=impl, bf16=bf16)
    expected_loss, expected = reference_gradients(
        HfStudent(folder), student_batch(V), LOSS, temperature=0.8
    )
    assert loss == pytest.approx(expected_loss, rel=bound, abs=bound)
    assert largest_relative(found, expected) < bound


@pytest.mark.parametrize("recipe", RECIPE_CAPABILITY)
def test_fp8_stays_near_bf16(folder: Path, place: Parallel, recipe: str) -> None:
    """Three bits of mantissa, in four layers: a tenth of the loss, a third of a gradient."""
    fp8_loss, fp8 = learned(
        folder, place, bf16=True, transformer_impl=TE, fp8_format="hybrid", fp8_recipe=recipe
    )
    loss, expected = learned(folder, place, bf16=True, transformer_impl=TE)
    assert fp8_loss != loss
    assert fp8_loss == pytest.approx(loss, rel=0.1, abs=0.02)
    assert largest_relative(fp8, expected) < 0.35


@pytest.mark.parametrize("impl", ["local", TE])
@pytest.mark.parametrize("fp8", [{}, {"fp8_format": "hybrid"}])
def test_a_shared_prompt_teaches_what_whole_rows_teach(
    folder: Path, place: Parallel, impl: str, fp8: dict[str, Any]
) -> None:
    """Responses without tokens, cut ones, and a prompt of one token are among the groups.

    bf16 rounds in another order. FP8's scales come from the tokens, which are others.
    """
    if fp8 and impl == "local":
        pytest.skip("FP8 needs Transformer Engine")
    rows = ((40, 9), (40, 0), (40, 70), (1, 3), (1, 30), (1, 1))
    batch = with_equal_prompts(student_batch(V, rows=rows), 3)
    compute = {"transformer_impl": impl, "bf16": True, "micro_batch_size": 6, **fp8}
    expected_loss, expected = learned(folder, place, batch, share_prompts=False, **compute)
    loss, found = learned(folder, place, batch, share_prompts=True, **compute)
    loss_bound, bound = (0.1, 0.35) if fp8 else (5e-2, 5e-2)
    assert loss == pytest.approx(expected_loss, rel=loss_bound, abs=loss_bound)
    assert largest_relative(found, expected) < bound


def test_the_embedded_engine_gives_the_trainers_logprobs(folder: Path, place: Parallel) -> None:
    student = make_student(folder, place)
    engine = EmbeddedEngine(folder, place.device, torch.float32)
    engine.load_weights(student.hf_weights(), version=1)
    prompt = Prompt(0, (), "", (5, 7, 11), ())
    (group,) = engine.generate([prompt], SamplingConfig(4, temperature=0.8, max_new_tokens=12))
    for rollout in group.rollouts:
        tokens = torch.tensor([[*prompt.ids, *rollout.ids]])
        batch = student_batch(V, rows=((3, tokens.shape[1] - 3),))
        logprobs = student.logprobs(type(batch)(tokens, batch.lengths, batch.response_mask), 0.8)
        expected = torch.tensor(rollout.rollout_logprobs)
        torch.testing.assert_close(logprobs[0, 3:], expected, atol=1e-4, rtol=1e-4)
    engine.close()
