"""Engine and trainer compared by the log-probabilities of what the engine sampled."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.config.rollout import FP32_GAP_BOUND
from megatron_gad.data.batching import policy_batch
from megatron_gad.data.chat import ChatCodec
from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.embedded import EmbeddedEngine
from megatron_gad.errors import RunStoppedError
from megatron_gad.runtime.sampler import Sampler
from megatron_gad.stages.agreement import (
    BF16_ROUNDING,
    Gap,
    GapBound,
    check_gap,
    gap_bound,
    mean_gap_bound,
)
from megatron_gad.training.parallel import Parallel, initialize, shut_down
from megatron_gad.training.trainer import Trainer
from megatron_gad.types import Batch, Prompt
from tests.tiny import make_hf_folder
from tests.tiny_tokenizer import make_tokenizer
from tests.tiny_training import make_student

V = 97
TEMPERATURE = 0.8


@dataclass(frozen=True)
class Both:
    """A student, and an engine with its weights."""

    student: Trainer
    sampler: Sampler
    engine: EmbeddedEngine

    def sampled(self, num_prompts: int = 3) -> Batch:
        """What the engine samples."""
        prompts = [Prompt(i, (), "!", (3 + i, 4, 5), (6,)) for i in range(num_prompts)]
        sampling = SamplingConfig(2, TEMPERATURE, max_new_tokens=9, seed=1)
        return policy_batch(self.engine.generate(prompts, sampling))

    def compare(self, batch: Batch, bound: GapBound) -> Gap:
        logprobs = self.student.logprobs(batch, TEMPERATURE)
        return check_gap(self.student, self.sampler, logprobs, batch, bound)

    def gap(self, batch: Batch, bound: float) -> float:
        return self.compare(batch, GapBound(largest=bound)).largest


@pytest.fixture(scope="module")
def place() -> Iterator[Parallel]:
    yield initialize(ParallelConfig(), seed=0)
    shut_down()


@pytest.fixture
def make_both(place: Parallel, tmp_path: Path):
    """Return a function that makes both, in float32 or bfloat16."""

    def make(bf16: bool) -> Both:
        folder = make_hf_folder(tmp_path / "model")
        make_tokenizer(tmp_path / "tokenizer")
        engine = EmbeddedEngine(folder, "cpu", torch.bfloat16 if bf16 else torch.float32)
        sampler = Sampler(engine, ChatCodec.from_folder(tmp_path / "tokenizer", 64, 64), place)
        student = make_student(folder, place, compute=ComputeConfig(bf16=bf16), lr=1e-3)
        sampler.load_weights(student.hf_weights(), version=1)
        return Both(student, sampler, engine)

    return make


@pytest.fixture
def both(make_both) -> Both:
    return make_both(bf16=False)


def test_the_same_weights_agree_within_rounding(both: Both) -> None:
    assert 0.0 <= both.gap(both.sampled(), FP32_GAP_BOUND) < 1e-4


def test_the_gap_is_the_largest_difference_at_a_sampled_token(both: Both) -> None:
    batch = both.sampled()
    assert batch.rollout_logprobs is not None
    moved = batch.rollout_logprobs.clone()
    row, position = 4, int(batch.lengths[4]) - 1
    moved[row, position] -= 0.25
    moved[:, 0] = 100.0  # no sampled token
    batch = replace(batch, rollout_logprobs=moved)
    assert both.gap(batch, bound=0.3) == pytest.approx(0.25, abs=1e-4)
    assert both.gap(batch, bound=0.0) == pytest.approx(0.25, abs=1e-4)
    with pytest.raises(RunStoppedError, match=r"by 0\.25 nats.*all weights are equal"):
        both.gap(batch, bound=0.2)


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_a_wrong_weight_is_named(both: Both, value: float) -> None:
    batch = both.sampled()
    name = "model.layers.1.mlp.up_proj.weight"
    dict(both.engine.held_weights())[name].data[3, 2] += value
    if not math.isnan(value):
        batch = both.sampled()
    else:  # an engine that holds this cannot sample any more
        batch = replace(batch, rollout_logprobs=torch.full(batch.tokens.shape, value))
    with pytest.raises(RunStoppedError, match=rf"{name} differs by up to"):
        both.gap(batch, bound=1e-6)


def test_a_gap_that_is_no_number_stops_the_run(both: Both) -> None:
    batch = both.sampled()
    nothing = torch.full(batch.tokens.shape, float("nan"))
    with pytest.raises(RunStoppedError, match="by nan nats"):
        both.gap(replace(batch, rollout_logprobs=nothing), FP32_GAP_BOUND)


def test_without_a_bound_a_large_gap_is_warned_of(
    both: Both, caplog: pytest.LogCaptureFixture
) -> None:
    batch = both.sampled()
    assert batch.rollout_logprobs is not None
    both.gap(batch, bound=0.0)
    assert caplog.text == ""
    gap = both.gap(replace(batch, rollout_logprobs=batch.rollout_logprobs - 2.5), bound=0.0)
    assert gap == pytest.approx(2.5, abs=1e-4)
    assert "disagree by 2.5 nats" in caplog.text


def test_the_mean_gap_is_over_the_sampled_tokens(both: Both) -> None:
    batch = both.sampled()
    assert batch.rollout_logprobs is not None
    moved = batch.rollout_logprobs.clone()
    mask = batch.response_mask
    moved[0] += 0.5
    moved[~mask] = 100.0
    gap = both.compare(replace(batch, rollout_logprobs=moved), GapBound())
    share = float(mask[0].sum() / mask.sum())
    assert gap.mean == pytest.approx(0.5 * share, abs=1e-4)


def test_what_rounding_is_allowed_by_hand() -> None:
    # 2^-8 x (1 + sqrt(4) x (4 x 0.5 + 12 x 0.25)) x (1 + 3 / 10)
    assert mean_gap_bound(2**-8, 4, 0.5, 0.25, 100) == pytest.approx(11 * 1.3 / 256)


BF16 = GapBound(rounding=BF16_ROUNDING)


def test_in_bf16_equal_weights_pass_though_rounding_is_beyond_the_bound_of_fp32(make_both) -> None:
    both = make_both(bf16=True)
    assert both.compare(both.sampled(16), BF16).mean > FP32_GAP_BOUND


def test_in_bf16_the_weights_of_ten_updates_ago_are_refused(make_both) -> None:
    both = make_both(bf16=True)
    for _ in range(10):
        both.student.train(both.sampled(16), supervised_loss)
    with pytest.raises(RunStoppedError, match=r"in the mean of \d+ sampled tokens; .* differs by"):
        both.compare(both.sampled(16), BF16)
    both.sampler.load_weights(both.student.hf_weights(), version=2)
    both.compare(both.sampled(16), BF16)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.v_proj.weight", "lm_head.weight"])
def test_in_bf16_a_weight_with_its_rows_in_another_order_is_refused(make_both, name: str) -> None:
    both = make_both(bf16=True)
    weights = dict(both.student.hf_weights())
    weights[name] = weights[name].flip(0)
    both.sampler.load_weights(weights.items(), version=2)
    with pytest.raises(RunStoppedError, match=f"{name} differs by"):
        both.compare(both.sampled(16), BF16)


def test_each_precision_has_a_bound_of_its_own_and_the_configured_one_takes_its_place() -> None:
    fp32, bf16 = ComputeConfig(), ComputeConfig(bf16=True)
    assert gap_bound(None, fp32) == GapBound(largest=FP32_GAP_BOUND)
    assert gap_bound(None, bf16) == GapBound(rounding=2**-8)
    assert gap_bound(None, replace(bf16, fp8_format="hybrid")) == GapBound()
    assert gap_bound(0.5, bf16) == GapBound(largest=0.5)
    assert gap_bound(0.0, bf16) == GapBound()
