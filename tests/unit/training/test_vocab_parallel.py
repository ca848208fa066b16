"""Log-probabilities and entropy from hidden states, on one shard. All shards: test_training.py."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from megatron_gad.training.vocab_parallel import VocabShard, response_logprobs, vocab_shard
from tests.memory import LargestTensor, peak_bytes

B, T, H, V = 3, 7, 5, 11
PADDED = 16
SHARD = VocabShard(start=0, size=V)
MASK = torch.tensor(
    [
        [False, False, True, True, True, False, False],
        [False, True, True, True, True, True, True],
        [False, False, False, False, False, False, True],
    ]
)
TOKENS = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))
UPSTREAM = torch.randn(B, T, generator=torch.Generator().manual_seed(2))


class Found(NamedTuple):
    """Results, and the gradients of sum(logprobs * UPSTREAM)."""

    logprobs: Tensor
    entropy: Tensor
    d_hidden: Tensor
    d_weight: Tensor


def drawn(dtype: torch.dtype = torch.float32, padding: float = 0.0) -> tuple[Tensor, Tensor]:
    """[B, T, H] hidden states and [PADDED, H] weights, some number in the padding rows."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(B, T, H, generator=generator)
    weight = 0.5 * torch.randn(PADDED, H, generator=generator)
    weight[V:] = padding
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()


def computed(
    hidden: Tensor, weight: Tensor, temperature: float = 1.0, chunk_size: int = 1024
) -> Found:
    """What the package computes."""
    logprobs, entropy = response_logprobs(
        hidden, weight, TOKENS, MASK, SHARD, temperature, chunk_size
    )
    (logprobs * UPSTREAM).sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    return Found(logprobs.detach(), entropy, hidden.grad, weight.grad)


def reference(hidden: Tensor, weight: Tensor, temperature: float = 1.0) -> Found:
    """The same by torch's log_softmax of all logits, in double precision."""
    hidden = hidden.detach().double().requires_grad_()
    weight = weight.detach().double().requires_grad_()
    logits = hidden[:, :-1] @ weight[:V].t() / temperature
    logp = torch.log_softmax(logits, dim=-1)
    taken = logp.gather(-1, TOKENS[:, 1:, None]).squeeze(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    aligned = [torch.nn.functional.pad(x, (1, 0)) for x in (taken, entropy)]
    logprobs, entropy = (torch.where(MASK, x, 0.0) for x in aligned)
    (logprobs * UPSTREAM).sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    return Found(logprobs.detach(), entropy.detach(), hidden.grad, weight.grad)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("chunk_size", [1, 3, 4, 1024])
def test_results_and_gradients_equal_those_of_all_logits(
    temperature: float, chunk_size: int
) -> None:
    found = computed(*drawn(), temperature, chunk_size)
    for ours, theirs in zip(found, reference(*drawn(), temperature), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("chunk_size", [3, 1024])
def test_bf16_logits_are_reduced_in_float32(chunk_size: int) -> None:
    """What is off is the rounding of the logits: 2^-9 of one, which is below 4."""
    hidden, weight = drawn(torch.bfloat16)
    found, exact = computed(hidden, weight, 0.8, chunk_size), reference(hidden, weight, 0.8)
    assert found.logprobs.dtype == found.entropy.dtype == torch.float32
    assert (found.logprobs - exact.logprobs).abs().max() < 4 * 2.0**-9 * 2 / 0.8
    assert found.d_hidden.dtype == found.d_weight.dtype == torch.bfloat16
    for ours, theirs in ((found.d_hidden, exact.d_hidden), (found.d_weight, exact.d_weight)):
        torch.testing.assert_close(ours.double(), theirs, atol=0.05, rtol=0.05)


def test_the_gradient_is_the_slope_of_the_logprobs() -> None:
    hidden, weight = drawn()
    found = computed(hidden, weight, 0.7, 4)
    generator = torch.Generator().manual_seed(3)
    step = 1e-2
    for moved, gradient in ((hidden, found.d_hidden), (weight, found.d_weight)):
        direction = torch.randn(moved.shape, generator=generator)
        ends = []
        for sign in (1, -1):
            at = {id(moved): moved.detach() + sign * step * direction}
            hidden_at, weight_at = (at.get(id(x), x.detach()) for x in (hidden, weight))
            logprobs, _ = response_logprobs(hidden_at, weight_at, TOKENS, MASK, SHARD, 0.7)
            ends.append(float((logprobs.double() * UPSTREAM).sum()))
        slope = (ends[0] - ends[1]) / (2 * step)
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-3)


@pytest.mark.parametrize("padding", [1e30, float("inf"), float("nan")])
def test_padding_rows_reach_neither_softmax_nor_gradient(padding: float) -> None:
    plain, padded = computed(*drawn()), computed(*drawn(padding=padding))
    for ours, theirs in zip(padded, plain, strict=True):
        assert torch.equal(ours, theirs)
    assert not padded.d_weight[V:].any()


def test_a_main_grad_takes_what_autograd_does_not() -> None:
    """Megatron adds the gradient that autograd has to what main_grad holds already."""
    hidden, weight = drawn(torch.bfloat16)
    before = torch.randn(PADDED, H, generator=torch.Generator().manual_seed(5))
    weight.main_grad = before.clone()  # pyright: ignore[reportAttributeAccessIssue]
    found = computed(hidden, weight, chunk_size=3)
    total = weight.main_grad - before + found.d_weight  # pyright: ignore
    plain = computed(*drawn(torch.bfloat16), chunk_size=3)
    torch.testing.assert_close(total, plain.d_weight.float(), atol=1e-2, rtol=1e-2)
    assert torch.equal(found.d_hidden, plain.d_hidden)


def test_a_batch_without_response_gives_zeros_and_runs_backward() -> None:
    hidden, weight = drawn()
    nothing = torch.zeros(B, T, dtype=torch.bool)
    logprobs, entropy = response_logprobs(hidden, weight, TOKENS, nothing, SHARD)
    assert torch.equal(logprobs, torch.zeros(B, T)) and torch.equal(entropy, torch.zeros(B, T))
    logprobs.sum().backward()
    for gradient in (hidden.grad, weight.grad):
        assert gradient is not None and not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_rows", "chunk_size"), [(4, 8), (16, 8), (4, 16)])
def test_no_tensor_is_larger_than_the_logits_of_a_chunk(
    dtype: torch.dtype, num_rows: int, chunk_size: int
) -> None:
    """With 500 columns, against 50 tokens a row."""
    tokens = torch.randint(500, (num_rows, 50))
    hidden = torch.randn(num_rows, 50, 4).to(dtype).requires_grad_()
    weight = torch.randn(500, 4).to(dtype).requires_grad_()
    everything = torch.ones(num_rows, 50, dtype=torch.bool)
    everything[:, 0] = False
    with LargestTensor() as largest:
        logprobs, _ = response_logprobs(
            hidden, weight, tokens, everything, VocabShard(0, 500), chunk_size=chunk_size
        )
        logprobs.sum().backward()
    assert largest.num_elements == chunk_size * 500


def head_peak(num_tokens: int, chunk_size: int) -> int:
    """Bytes of a forward and backward over [1, num_tokens] with 8 hidden values, 4,000 columns."""
    hidden = torch.randn(1, num_tokens, 8).requires_grad_()
    weight = torch.randn(4000, 8).requires_grad_()
    tokens = torch.randint(4000, (1, num_tokens))
    mask = torch.arange(num_tokens)[None] > 0

    def step() -> None:
        shard = VocabShard(0, 4000)
        logprobs, _ = response_logprobs(hidden, weight, tokens, mask, shard, chunk_size=chunk_size)
        logprobs.sum().backward()

    return peak_bytes(step)


def test_peak_memory_grows_with_the_chunk_and_not_with_the_tokens() -> None:
    bytes_of_a_token = 4000 * 4
    few, many = head_peak(200, 16), head_peak(2000, 16)
    assert many - few < 0.05 * 1800 * bytes_of_a_token
    small, large = head_peak(2000, 16), head_peak(2000, 64)
    assert 48 * bytes_of_a_token <= large - small <= 4 * 48 * bytes_of_a_token
    everything = head_peak(2000, 2000)
    assert everything > 2000 * bytes_of_a_token > 10 * many


@pytest.mark.usefixtures("place")
def test_the_shard_of_a_whole_vocabulary_leaves_its_padding_out() -> None:
    assert vocab_shard(PADDED, V) == VocabShard(start=0, size=V, group=None)
