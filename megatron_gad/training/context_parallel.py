"""Rows whose tokens are shared among the ranks of a context-parallel group, and whole again."""

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_gad.models.attention import context_parallel_positions


def context_group() -> dist.ProcessGroup | None:
    """Return the ranks that share this rank's rows; None where rows are whole."""
    if parallel_state.get_context_parallel_world_size() == 1:
        return None
    group: Any = parallel_state.get_context_parallel_group()
    return group


def own_tokens(rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return this rank's tokens of [B, T, ...] rows: [B, T / CP, ...].

    T divides by 2 CP. The tokens are those that ``context_parallel_positions`` names.
    """
    if group is None:
        return rows
    return rows[:, _positions(rows.shape[1] // group.size(), group)[group.rank()].to(rows.device)]


def whole_rows(own: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Put the tokens of all ranks together: [B, T / CP] -> [B, T], the same on every rank.

    All ranks have to compute the same from the result: each takes the gradient of its own tokens,
    so that the sum over ranks, which Megatron takes, counts every token once.
    """
    return own if group is None else _WholeRows.apply(own, group)


class _WholeRows(torch.autograd.Function):
    """Gather forward, cut backward."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(own) for _ in range(group.size())]
        dist.all_gather(parts, own.contiguous(), group=group)
        order = _positions(own.shape[1], group).flatten().argsort().to(own.device)
        return torch.cat(parts, dim=1)[:, order]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return own_tokens(gradient, ctx.group), None


def _positions(num_own: int, group: dist.ProcessGroup) -> Tensor:
    return context_parallel_positions(num_own, group.size())
