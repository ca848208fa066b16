"""What Megatron's optimizers need where a weight of a bf16 model is float32, as a scorer's head is.

Both train such a weight as it is, beside the float32 main copies of the others; around a checkpoint
neither finds its states. The plain one looks up the others only, and fails. The distributed one
lists float32 weights before the others in a group, and looks all up in the order of its buffers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params


def find_float32_weights_first(optimizer: Any) -> None:
    """Let a distributed optimizer look weights up where it lists them."""
    for part in _parts(optimizer, DistributedOptimizer):
        groups = zip(part.model_fp32_groups, part.model_float16_groups, strict=True)
        for group_index, (float32, others) in enumerate(groups):
            for order, weight in enumerate((*float32, *others)):
                part.model_param_group_index_map[weight] = (group_index, order)


@contextmanager
def float32_weights_known(optimizer: Any) -> Iterator[None]:
    """Let float32 weights be their own main copies for a plain optimizer, inside the block.

    A checkpoint is then the same as if they were bfloat16.
    """
    parts = _parts(optimizer, Float16OptimizerWithFloat16Params)
    groups = [(part.float16_groups, part.fp32_from_float16_groups) for part in parts]
    try:
        for part in parts:
            part.float16_groups, part.fp32_from_float16_groups = _all_groups(part)
        yield
    finally:
        for part, (weights, mains) in zip(parts, groups, strict=True):
            part.float16_groups, part.fp32_from_float16_groups = weights, mains


def _all_groups(part: Any) -> tuple[list[list[Any]], list[list[Any]]]:
    """Return all weights, and all main copies, by parameter group in the optimizer's order."""
    weight_of_main = {
        main: weight
        for pair in zip(part.float16_groups, part.fp32_from_float16_groups, strict=True)
        for weight, main in zip(*pair, strict=True)
    }
    mains = [list(group["params"]) for group in part.optimizer.param_groups]
    return [[weight_of_main.get(main, main) for main in group] for group in mains], mains


def _parts(optimizer: Any, kind: type) -> list[Any]:
    """Return the optimizers of a kind that have something to train on this rank."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part for part in parts if isinstance(part, kind) and not part.is_stub_optimizer]
