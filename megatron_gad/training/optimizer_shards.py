"""A distributed optimizer in a checkpoint: every rank its own shard, and no shard gathered.

A rank of Megatron's distributed optimizer holds the states of a contiguous piece of each flattened
parameter. A piece is a few boxes of the parameter as it is shaped: the end of a row, whole rows,
the beginning of a row. As boxes of the whole tensor it can be saved by the rank that holds it, and
any other layout finds the boxes that its own pieces overlap. Megatron's formats either gather the
pieces or can be read at the same layout only.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

PREFIX = "optimizer.state"


class Box(NamedTuple):
    """A box of an array, whose entries follow each other in the flattened array from start on."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    start: int


def boxes(shape: Sequence[int], start: int, end: int) -> Iterator[Box]:
    """Yield the boxes that make up entries start to end of an array flattened row by row."""
    if start >= end:
        return
    if len(shape) == 1:
        yield Box((start,), (end - start,), start)
        return
    inner, rest = math.prod(shape[1:]), shape[1:]
    first, last = -(-start // inner), end // inner
    if first > last:  # within one row
        yield from _of_row(last, rest, inner, start, end)
        return
    yield from _of_row(first - 1, rest, inner, start, first * inner)
    if first < last:
        zeros = (0,) * len(rest)
        yield Box((first, *zeros), (last - first, *rest), first * inner)
    yield from _of_row(last, rest, inner, last * inner, end)


def _of_row(row: int, shape: Sequence[int], inner: int, start: int, end: int) -> Iterator[Box]:
    for offset, size, begin in boxes(shape, start - row * inner, end - row * inner):
        yield Box((row, *offset), (1, *size), begin + row * inner)


def sharded_states(part: DistributedOptimizer, model: Any, prefix: str) -> dict[int, Any]:
    """Return main parameters and moments of a rank's shard as boxes of whole tensors.

    The tensors are the optimizer's own where it holds them as they are saved: what is loaded into
    the boxes is in place then.

    model: sharded state of the modules. prefix: of the tensors' names.

    Returns:
        Number of a parameter -> {name of a state: its boxes}, in the order of ``shard_tensors``.
    """
    whole = {
        each.data: each
        for each in nested_values(model)
        if isinstance(each, ShardedTensor | ShardedTensorFactory)
    }
    return {
        number: {
            name: list(_boxes_of(whole[parameter], values, begin, f"{prefix}{PREFIX}.{name}"))
            for name, values in tensors.items()
        }
        for number, (parameter, begin, tensors) in enumerate(shard_tensors(part))
    }


def shard_tensors(part: DistributedOptimizer) -> Iterator[tuple[Any, int, dict[str, Tensor]]]:
    """Yield (parameter, first entry of the rank's piece, {state: flat values}) of a shard."""
    for buffer in part.gbuf_ranges:
        for buckets in buffer.values():
            for bucket in buckets:
                for parameter, ranges in bucket["param_map"].items():
                    held = part._get_main_param_and_optimizer_states(parameter)
                    tensors = {name: each for name, each in held.items() if name != "step"}
                    yield parameter, ranges["param"].start, tensors


def _boxes_of(
    whole: ShardedTensor | ShardedTensorFactory, values: Tensor, begin: int, name: str
) -> Iterator[ShardedTensor]:
    """Yield the boxes of a piece: entries from ``begin`` on of the parameter that a rank has."""
    values = values.detach().view(-1)
    for stored, start in _parts_of(whole):
        numel = math.prod(stored.local_shape)
        first, last = max(begin, start), min(begin + values.numel(), start + numel)
        for box in boxes(stored.local_shape, first - start, last - start):
            at = start + box.start - begin
            ahead = (1,) * stored.prepend_axis_num
            shape = ahead + box.shape
            offset = zip(stored.global_offset, (0,) * len(ahead) + box.offset, strict=True)
            yield ShardedTensor(
                key=f"{name}.{stored.key}",
                data=values[at : at + math.prod(box.shape)].view(shape),
                dtype=values.dtype,
                local_shape=shape,
                global_shape=stored.global_shape,
                global_offset=tuple(a + b for a, b in offset),
                axis_fragmentations=None,
                # Of the copies over which the states are shared out, each has its own piece.
                replica_id=(*_replica(stored)[:2], 0),
                allow_shape_mismatch=stored.allow_shape_mismatch,
            )


def _parts_of(
    whole: ShardedTensor | ShardedTensorFactory,
) -> Iterator[tuple[ShardedTensor, int]]:
    """Yield the tensors that a parameter is stored as, and where each begins in it."""
    if isinstance(whole, ShardedTensor):
        yield whole, 0
        return
    # Gate and up of an MLP are two halves of one weight. They are cut from a tensor without values.
    like = torch.empty(whole.data.shape, device="meta")
    cut = whole.build_fn(whole.key, like, whole.replica_id, None)
    found = [each for each in nested_values({"parts": cut}) if isinstance(each, ShardedTensor)]
    for each in found:
        assert each.data is not None and each.data.is_contiguous(), whole.key
        assert each.data.untyped_storage()._cdata == like.untyped_storage()._cdata, whole.key
        yield each, int(each.data.storage_offset())
    assert sum(each.data.numel() for each in found if each.data is not None) == like.numel()


def _replica(stored: ShardedTensor) -> tuple[int, ...]:
    replica = stored.replica_id
    assert isinstance(replica, tuple) and len(replica) == 3, (stored.key, replica)
    return replica
