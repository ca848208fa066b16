"""Logits that are sharded over the vocabulary -> log-probabilities of taken tokens and entropy.

No float32 copy of all logits exists at any time: forward and backward work on chunks of tokens,
and only positions whose log-probability is asked for are touched.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

# A logit whose exponential is 0, and whose product with that 0 is 0.
NO_WEIGHT = -1e30


@dataclass(frozen=True)
class VocabShard:
    """The vocabulary columns of this tensor-parallel rank.

    start: first column's token id.
    size: columns that are real tokens; the padding behind them never reaches a softmax. 0 where a
        small vocabulary leaves nothing but padding for this rank.
    group: tensor-parallel group, None where the vocabulary is whole.
    """

    start: int
    size: int
    group: dist.ProcessGroup | None = None


def vocab_shard(local_columns: int, real_vocab_size: int) -> VocabShard:
    """Return this rank's shard of a vocabulary padded to ``local_columns`` times the TP size."""
    start = parallel_state.get_tensor_model_parallel_rank() * local_columns
    group: Any = parallel_state.get_tensor_model_parallel_group()
    is_sharded = parallel_state.get_tensor_model_parallel_world_size() > 1
    return VocabShard(
        start=start,
        size=max(0, min(local_columns, real_vocab_size - start)),
        group=group if is_sharded else None,
    )


def response_logprobs(
    logits: Tensor,
    tokens: Tensor,
    response_mask: Tensor,
    shard: VocabShard,
    temperature: float = 1.0,
    chunk_size: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Return logprobs (with gradient) and entropy (without) at response tokens.

    logits: [B, T, V / TP] any float type; position t predicts token t + 1.
    tokens: [B, T] int64. response_mask: [B, T] bool; position 0 is never a response.
    Returns two [B, T] float32, aligned with ``tokens``, 0 where response_mask is False.
    """
    width = tokens.shape[1]
    positions = response_mask.flatten().nonzero().squeeze(1)
    picked, entropy = _PickedLogprobs.apply(
        logits.reshape(-1, logits.shape[-1]),
        positions - 1,
        tokens.flatten()[positions],
        shard,
        temperature,
        chunk_size,
    )
    zeros = torch.zeros(tokens.numel(), dtype=torch.float32, device=logits.device)
    aligned = zeros.index_put((positions,), picked).view(-1, width)
    return aligned, zeros.index_put((positions,), entropy).view(-1, width)


class _PickedLogprobs(torch.autograd.Function):
    """log softmax(logits[rows] / temperature)[targets], in chunks of rows."""

    @staticmethod
    def forward(ctx, logits, rows, targets, shard, temperature, chunk_size):
        logprobs, entropies, log_normalisers = [], [], []
        for row, target in zip(rows.split(chunk_size), targets.split(chunk_size), strict=True):
            values = _scaled_rows(logits, row, shard, temperature)
            top = _largest(values, shard)
            # Everything relative to the largest value, so that no digits are lost to a common one.
            values.sub_(top[:, None])
            log_sum, mean = _log_sum_and_mean(values, shard)
            logprobs.append(_taken(values, target, shard) - log_sum)
            entropies.append(log_sum - mean)
            log_normalisers.append(top + log_sum)
        empty = logits.new_zeros(0, dtype=torch.float32)
        ctx.save_for_backward(logits, rows, targets, torch.cat([empty, *log_normalisers]))
        ctx.shard, ctx.temperature, ctx.chunk_size = shard, temperature, chunk_size
        entropy = torch.cat([empty, *entropies])
        ctx.mark_non_differentiable(entropy)
        return torch.cat([empty, *logprobs]), entropy

    @staticmethod
    def backward(ctx, grad_logprobs, _grad_entropy):
        logits, rows, targets, log_normalisers = ctx.saved_tensors
        grad = torch.zeros_like(logits)
        chunks = (x.split(ctx.chunk_size) for x in (rows, targets, log_normalisers, grad_logprobs))
        for row, target, log_z, upstream in zip(*chunks, strict=True):
            values = _scaled_rows(logits, row, ctx.shard, ctx.temperature)
            # d logprob / d logits = (onehot(target) - softmax) / temperature
            slope = values.sub_(log_z[:, None]).exp_().neg_()
            column, is_here = _local_columns(target, ctx.shard)
            slope.scatter_add_(1, column[:, None], is_here[:, None].to(slope.dtype))
            slope.mul_((upstream / ctx.temperature)[:, None])
            grad[row, : slope.shape[1]] = slope.to(grad.dtype)
        return grad, None, None, None, None, None


def _scaled_rows(logits: Tensor, rows: Tensor, shard: VocabShard, temperature: float) -> Tensor:
    """Return a float32 copy of some rows' real columns, divided by the temperature.

    A shard of padding alone takes part in the sums with one column that weighs nothing.
    """
    values = logits[rows, : max(1, shard.size)].float()
    return values.div_(temperature) if shard.size else values.fill_(NO_WEIGHT)


def _largest(values: Tensor, shard: VocabShard) -> Tensor:
    """Return the largest value of each row over all shards, [N]."""
    top = values.amax(dim=1)
    if shard.group is not None:
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=shard.group)
    return top


def _log_sum_and_mean(values: Tensor, shard: VocabShard) -> tuple[Tensor, Tensor]:
    """Return log sum exp of the values and their mean under softmax, each [N], over all shards."""
    weights = values.exp()
    sums = torch.stack([weights.sum(1), weights.mul_(values).sum(1)])
    if shard.group is not None:
        dist.all_reduce(sums, group=shard.group)
    return sums[0].log(), sums[1] / sums[0]


def _taken(values: Tensor, targets: Tensor, shard: VocabShard) -> Tensor:
    """Return the value in each row's target column, whichever rank holds it, [N]."""
    column, is_here = _local_columns(targets, shard)
    taken = torch.where(is_here, values.gather(1, column[:, None]).squeeze(1), 0.0)
    if shard.group is not None:
        dist.all_reduce(taken, group=shard.group)
    return taken


def _local_columns(targets: Tensor, shard: VocabShard) -> tuple[Tensor, Tensor]:
    """Return each target's column in this shard (0 if elsewhere) and whether it is here."""
    column = targets - shard.start
    is_here = (column >= 0) & (column < shard.size)
    return torch.where(is_here, column, 0), is_here
