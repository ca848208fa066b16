"""Hidden states -> log-probabilities of taken tokens and entropy, over a sharded vocabulary.

The output layer, the largest part of a step's memory if left to itself, is applied here, to chunks
of the tokens whose log-probability is asked for. The logits of a chunk are reduced and dropped, and
computed again for the gradient, so that memory grows with the chunk and not with the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor
from torch.nn.functional import pad

from megatron_gad.training.context_parallel import context_group, own_tokens, whole_rows
from megatron_gad.training.packing import PackedOutput

# A logit whose exponential is 0, and whose product with that 0 is 0.
NO_WEIGHT = -1e30


@dataclass(frozen=True)
class VocabShard:
    """What this rank has of the logits: columns of the vocabulary, and positions of a row.

    start: first column's token id.
    size: columns that are real tokens; the padding behind them never reaches a softmax. 0 where a
        small vocabulary leaves nothing but padding for this rank.
    group: tensor-parallel group, None where the vocabulary is whole.
    context_group: the ranks that share the tokens of a row, None where rows are whole.
    """

    start: int
    size: int
    group: dist.ProcessGroup | None = None
    context_group: dist.ProcessGroup | None = None


def vocab_shard(local_columns: int, real_vocab_size: int) -> VocabShard:
    """Return this rank's shard of a vocabulary padded to ``local_columns`` times the TP size."""
    start = parallel_state.get_tensor_model_parallel_rank() * local_columns
    group: Any = parallel_state.get_tensor_model_parallel_group()
    is_sharded = parallel_state.get_tensor_model_parallel_world_size() > 1
    return VocabShard(
        start=start,
        size=max(0, min(local_columns, real_vocab_size - start)),
        group=group if is_sharded else None,
        context_group=context_group(),
    )


def response_logprobs(
    hidden: Tensor | PackedOutput,
    output_weight: Tensor,
    tokens: Tensor,
    response_mask: Tensor,
    shard: VocabShard,
    temperature: float = 1.0,
    chunk_size: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Return logprobs (with gradient) and entropy (without) at response tokens.

    hidden: [B, T / CP, H] any float type, or that of packed rows, the same on all shards; position
        t predicts token t + 1.
    output_weight: [V / TP, H], the dtype of hidden.
    tokens: [B, T] int64. response_mask: [B, T] bool; position 0 is never a response.
    Returns two [B, T] float32, aligned with ``tokens``, 0 where response_mask is False.
    """
    places, targets = predicted_places(tokens, response_mask, shard.context_group)
    picked = taken_logprobs(
        hidden[places], output_weight, targets[places], shard, temperature, chunk_size
    )
    logprobs, entropy = (
        by_row(values, places, targets.shape, shard.context_group) for values in picked
    )
    return logprobs, entropy


Places = tuple[Tensor, ...]


def predicted_places(
    tokens: Tensor, response_mask: Tensor, group: dist.ProcessGroup | None
) -> tuple[Places, Tensor]:
    """Return where this rank's hidden states predict a response token, and what comes next.

    tokens: [B, T] int64. response_mask: [B, T] bool. group: the ranks that share the tokens.
    Returns indices of rows and positions in [B, T / CP], and [B, T / CP] int64.
    """
    # Shifted before they are shared: the token after a rank's last one may be another rank's.
    targets = own_tokens(pad(tokens[:, 1:], (0, 1)), group)
    is_wanted = own_tokens(before_responses(response_mask), group)
    return is_wanted.nonzero(as_tuple=True), targets


def before_responses(response_mask: Tensor) -> Tensor:
    """Return the mask of the positions whose next token is in the response mask, [B, T] bool."""
    return pad(response_mask[:, 1:], (0, 1))


def by_row(
    values: Tensor, places: Places, shape: torch.Size, group: dist.ProcessGroup | None
) -> Tensor:
    """Return values of some places as [B, T], aligned with the tokens that they predict, else 0.

    values: [N]. shape: B and T / CP, which ``places`` are of.
    """
    zeros = torch.zeros(shape, dtype=values.dtype, device=values.device)
    return pad(whole_rows(zeros.index_put(places, values), group)[:, :-1], (1, 0))


def taken_logprobs(
    hidden: Tensor,
    output_weight: Tensor,
    targets: Tensor,
    shard: VocabShard,
    temperature: float,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Return log softmax(hidden @ output_weight^T / temperature)[targets], and the entropy.

    hidden: [N, H]. targets: [N] int64. Both results are [N] float32; the entropy has no gradient.
    """
    return _TakenLogprobs.apply(hidden, output_weight, targets, shard, temperature, chunk_size)


class _TakenLogprobs(torch.autograd.Function):
    """Chunk by chunk of tokens, so that there are no logits but those of one chunk."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, shard, temperature, chunk_size):
        keeps = any(ctx.needs_input_grad)
        logprobs, entropies, log_normalisers, kept = [], [], [], None
        for some, target in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True):
            values = scaled_logits(some, weight, shard, temperature)
            top = largest_logits(values, shard)
            # Everything relative to the largest value, so that no digits are lost to a common one.
            values.sub_(top[:, None])
            log_sum, mean = log_sum_and_mean(values, shard)
            logprobs.append(taken_values(values, target, shard) - log_sum)
            entropies.append(log_sum - mean)
            log_normalisers.append(top + log_sum)
            # The gradient begins with the last chunk, whose logits are at hand then.
            kept = values.sub_(log_sum[:, None]) if keeps else None
        ctx.save_for_backward(hidden, weight, targets, torch.cat(log_normalisers), kept)
        ctx.shard, ctx.temperature, ctx.chunk_size = shard, temperature, chunk_size
        # Megatron's float32 sum of this weight's gradients, where the weight is being trained.
        ctx.main_grad = getattr(weight, "main_grad", None)
        entropy = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(logprobs), entropy

    @staticmethod
    def backward(ctx, *gradients):
        hidden, weight, targets, log_normalisers, logp = ctx.saved_tensors
        parts = (targets, log_normalisers, gradients[0])
        chunks = list(zip(*(part.split(ctx.chunk_size) for part in parts), strict=True))

        def slope_of(index: int, some: Tensor) -> Tensor:
            nonlocal logp
            target, log_z, upstream = chunks[index]
            if logp is None:
                logp = scaled_logits(some, weight, ctx.shard, ctx.temperature)
                logp.sub_(log_z[:, None])
            slope = _slope(logp, target, upstream / ctx.temperature, ctx.shard)
            logp = None
            return slope

        found = head_gradients(hidden, weight, ctx.main_grad, ctx.shard, ctx.chunk_size, slope_of)
        return *found, None, None, None, None


def head_gradients(
    hidden: Tensor,
    weight: Tensor,
    main_grad: Tensor | None,
    shard: VocabShard,
    chunk_size: int,
    slope_of: Callable[[int, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the gradients of hidden states [N, H] and of this rank's output weight [V / TP, H].

    main_grad: Megatron's float32 sum of the weight's gradients, which takes what the result has
        not; None where there is none.
    slope_of: (number of a chunk, its hidden states) -> gradient of its logits, [n, V] float32. It
        is asked from the last chunk to the first.
    """
    d_hidden, d_weight = torch.zeros_like(hidden), torch.zeros_like(weight)
    chunks = list(zip(hidden.split(chunk_size), d_hidden.split(chunk_size), strict=True))
    total = _sum_of_chunks(weight, main_grad, len(chunks))
    for index, (some, result) in reversed(list(enumerate(chunks))):
        if shard.size == 0:
            break
        slope = slope_of(index, some).to(hidden.dtype)
        torch.mm(slope, weight[: shard.size], out=result)
        if index == 0:
            torch.mm(slope.t(), some, out=d_weight[: shard.size])
        else:
            _add_product(total[: shard.size], slope, some)
    if main_grad is None and len(chunks) > 1:
        d_weight = (total + d_weight).to(weight.dtype)
    if shard.group is not None:
        dist.all_reduce(d_hidden, group=shard.group)
    return d_hidden, d_weight


def _sum_of_chunks(weight: Tensor, main_grad: Tensor | None, num_chunks: int) -> Tensor:
    """Return the float32 tensor that takes the products of all chunks but one.

    The last product goes to autograd, and from there Megatron adds it to the same ``main_grad``,
    with the gradient of a tied embedding. So the sum needs no memory of its own, and no digits are
    lost between the chunks in bf16.
    """
    if main_grad is not None:
        return main_grad
    return torch.zeros_like(weight, dtype=torch.float32) if num_chunks > 1 else weight.new_empty(0)


def _add_product(total: Tensor, slope: Tensor, hidden: Tensor) -> None:
    """Add slope^T @ hidden to a float32 sum; slope: [N, V], hidden: [N, H]."""
    if slope.dtype == total.dtype:
        total.addmm_(slope.t(), hidden)
    else:
        total.add_(slope.t() @ hidden)


def _slope(logp: Tensor, targets: Tensor, upstream: Tensor, shard: VocabShard) -> Tensor:
    """Return upstream * (onehot(target) - softmax), over what was logp: [N, V] float32."""
    slope = logp.exp_().neg_()
    column, is_here = _local_columns(targets, shard)
    slope.scatter_add_(1, column[:, None], is_here[:, None].to(slope.dtype))
    return slope.mul_(upstream[:, None])


def scaled_logits(hidden: Tensor, weight: Tensor, shard: VocabShard, temperature: float) -> Tensor:
    """Return the real columns' logits of some tokens, float32, divided by the temperature.

    The product has the type of its factors: of bf16 ones it is rounded to bf16, by up to 2^-9 of a
    logit, before all that follows is float32. Float32 factors would be a copy of the vocabulary.

    A shard of padding alone takes part in the sums with one column that weighs nothing.
    """
    if shard.size == 0:
        return hidden.new_full((len(hidden), 1), NO_WEIGHT, dtype=torch.float32)
    return (hidden @ weight[: shard.size].t()).float().div_(temperature)


def largest_logits(values: Tensor, shard: VocabShard) -> Tensor:
    """Return the largest value of each row over all shards, [N]."""
    top = values.amax(dim=1)
    if shard.group is not None:
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=shard.group)
    return top


def log_sum_and_mean(values: Tensor, shard: VocabShard) -> tuple[Tensor, Tensor]:
    """Return log sum exp of the values and their mean under softmax, each [N], over all shards."""
    weights = values.exp()
    sums = torch.stack([weights.sum(1), weights.mul_(values).sum(1)])
    if shard.group is not None:
        dist.all_reduce(sums, group=shard.group)
    return sums[0].log(), sums[1] / sums[0]


def taken_values(values: Tensor, targets: Tensor, shard: VocabShard) -> Tensor:
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
