"""What Megatron's distributed optimizer needs around a checkpoint.

It was written for a fused Adam, which counts its steps once per parameter group. torch's Adam
counts in a tensor per parameter: Megatron saves the count from there, but makes states without one,
and gives all parameters the same tensor when it loads, which then counts once for each of them.
"""

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer


def fill_moments(optimizer: Any) -> None:
    """Make the moments that a distributed optimizer has not made yet: 0 after 0 steps.

    It can save and load only what is there. A step from them is the first step. Optimizers of
    another kind stay as they are.
    """
    for part in _distributed_parts(optimizer):
        if part.init_state_fn is None:  # an optimizer on the host makes its own
            continue
        part.init_state_fn(part.optimizer, part.config)
        if isinstance(part.optimizer, torch.optim.AdamW):
            for parameter, state in part.optimizer.state.items():
                state.setdefault("step", torch.zeros((), device=parameter.device))


def load_optimizer(optimizer: Any, state: dict[Any, Any]) -> None:
    """Take an optimizer's state from a checkpoint, in whatever layout it was saved."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    states = [state] if len(parts) == 1 else [state[index] for index in range(len(parts))]
    for part, own in zip(parts, states, strict=True):
        if isinstance(part, DistributedOptimizer) and not part.is_stub_optimizer:
            _load_shards(part, own)
        else:
            part.load_state_dict(own)


def _load_shards(part: DistributedOptimizer, state: dict[str, Any]) -> None:
    """Load the parameter groups, and then this rank's shard of every moment.

    The counts of steps are out of the way meanwhile: no checkpoint has them by parameter.
    """
    part.load_state_dict({key: value for key, value in state.items() if key != "param_state"})
    held = part.optimizer.state
    is_torch = isinstance(part.optimizer, torch.optim.AdamW)
    steps = {p: held[p].pop("step").clone() for p in held} if is_torch else {}
    part.load_parameter_state_from_fully_reshardable(state["param_state"])
    for parameter, step in steps.items():
        held[parameter]["step"] = step


def _distributed_parts(optimizer: Any) -> Iterator[DistributedOptimizer]:
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if isinstance(part, DistributedOptimizer) and not part.is_stub_optimizer:
            yield part
