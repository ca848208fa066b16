"""Log-probabilities and entropy of sharded logits, on one shard. All shards: test_training.py."""

import pytest
import torch
from torch import Tensor

from megatron_gad.training.vocab_parallel import VocabShard, response_logprobs, vocab_shard
from tests.largest_float32 import LargestFloat32

B, T, V = 3, 7, 11
PADDED = 16
SHARD = VocabShard(start=0, size=V)
MASK = torch.tensor(
    [
        [False, False, True, True, True, False, False],
        [False, True, True, True, True, True, True],
        [False, False, False, False, False, False, True],
    ]
)


def drawn_logits(dtype: torch.dtype = torch.float32, padding: float = 0.0) -> Tensor:
    """[B, T, PADDED] logits, with a number of one's choice in the padding columns."""
    logits = 3.0 * torch.randn(B, T, PADDED, generator=torch.Generator().manual_seed(0))
    logits[..., V:] = padding
    return logits.to(dtype)


def drawn_tokens() -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))


def reference(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logprobs and entropy by torch's log_softmax, in the precision of the logits."""
    logp = torch.log_softmax(logits[:, :-1, :V] / temperature, dim=-1)
    taken = logp.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    aligned = [torch.nn.functional.pad(x, (1, 0)) for x in (taken, entropy)]
    return torch.where(MASK, aligned[0], 0.0), torch.where(MASK, aligned[1], 0.0)


@pytest.mark.parametrize("temperature", [1.0, 0.8, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_and_entropy_equal_log_softmax(dtype: torch.dtype, temperature: float) -> None:
    logits, tokens = drawn_logits(dtype), drawn_tokens()
    logprobs, entropy = response_logprobs(logits, tokens, MASK, SHARD, temperature)
    expected = reference(logits.double(), tokens, temperature)
    assert logprobs.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logprobs, expected[0].float(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(entropy, expected[1].float(), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2.0**-8)])
def test_gradients_equal_those_of_autograd(
    dtype: torch.dtype, tolerance: float, temperature: float
) -> None:
    logits, tokens = drawn_logits(dtype).requires_grad_(), drawn_tokens()
    upstream = torch.randn(B, T, generator=torch.Generator().manual_seed(2))
    logprobs, _ = response_logprobs(logits, tokens, MASK, SHARD, temperature)
    (logprobs * upstream).sum().backward()
    whole = logits.detach().double().requires_grad_()
    (reference(whole, tokens, temperature)[0] * upstream).sum().backward()
    assert logits.grad is not None and logits.grad.dtype == dtype
    torch.testing.assert_close(logits.grad.double(), whole.grad, atol=tolerance, rtol=tolerance)
    assert not logits.grad[..., V:].any()


def test_the_gradient_is_the_slope_of_the_logprobs() -> None:
    tokens = drawn_tokens()
    logits = drawn_logits().requires_grad_()
    upstream = torch.randn(B, T, generator=torch.Generator().manual_seed(2))

    def total(values: Tensor) -> Tensor:
        return (response_logprobs(values, tokens, MASK, SHARD, 0.7)[0].double() * upstream).sum()

    total(logits).backward()
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))
    step = 1e-2
    with torch.no_grad():
        slope = (total(logits + step * direction) - total(logits - step * direction)) / (2 * step)
    assert logits.grad is not None
    along = (logits.grad * direction)[..., :V].sum()
    assert float(slope) == pytest.approx(float(along), rel=1e-3)


@pytest.mark.parametrize("padding", [1e30, float("inf"), float("nan")])
def test_padding_columns_reach_neither_softmax_nor_gradient(padding: float) -> None:
    tokens = drawn_tokens()
    results = []
    for value in (0.0, padding):
        logits = drawn_logits(padding=value).requires_grad_()
        logprobs, entropy = response_logprobs(logits, tokens, MASK, SHARD)
        logprobs.sum().backward()
        results.append((logprobs.detach(), entropy, logits.grad))
    for plain, padded in zip(*results, strict=True):
        assert torch.equal(plain, padded)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 100])
def test_the_chunk_size_changes_nothing(chunk_size: int) -> None:
    tokens = drawn_tokens()
    results = []
    for size in (10, chunk_size):
        logits = drawn_logits().requires_grad_()
        logprobs, entropy = response_logprobs(logits, tokens, MASK, SHARD, 0.8, size)
        logprobs.square().sum().backward()
        results.append((logprobs.detach(), entropy, logits.grad))
    for one_chunk, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, one_chunk, atol=1e-7, rtol=1e-6)


def test_a_batch_without_response_gives_zeros_and_runs_backward() -> None:
    logits = drawn_logits().requires_grad_()
    nothing = torch.zeros(B, T, dtype=torch.bool)
    logprobs, entropy = response_logprobs(logits, drawn_tokens(), nothing, SHARD)
    assert torch.equal(logprobs, torch.zeros(B, T)) and torch.equal(entropy, torch.zeros(B, T))
    logprobs.sum().backward()
    assert logits.grad is not None and not logits.grad.any()


def test_no_float32_copy_of_all_logits_is_ever_made() -> None:
    tokens = torch.randint(500, (4, 50), generator=torch.Generator().manual_seed(1))
    logits = torch.randn(4, 50, 500).bfloat16().requires_grad_()
    everything = torch.ones(4, 50, dtype=torch.bool)
    everything[:, 0] = False
    with LargestFloat32() as largest:
        logprobs, _ = response_logprobs(
            logits, tokens, everything, VocabShard(0, 500), chunk_size=8
        )
        logprobs.sum().backward()
    assert largest.num_elements == 8 * 500


@pytest.mark.usefixtures("place")
def test_the_shard_of_a_whole_vocabulary_leaves_its_padding_out() -> None:
    assert vocab_shard(PADDED, V) == VocabShard(start=0, size=V, group=None)
