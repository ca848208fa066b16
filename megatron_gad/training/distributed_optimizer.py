"""What Megatron's distributed optimizer needs around a checkpoint.

It was written for a fused Adam, which counts its steps once per parameter group. torch's Adam
counts in a tensor per parameter: Megatron saves the count from there, but makes states without one,
and gives all parameters the same tensor when it loads, which then counts once for each of them.
"""

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_gad.training.optimizer_shards import shard_tensors, sharded_states


def fill_moments(optimizer: Any) -> None:
    """Make the moments that a distributed optimizer has not made yet: 0 after 0 steps.

    It can save and load only what is there. A step from them is the first step. Optimizers of
    another kind stay as they are.
    """
    for part in _distributed_parts(optimizer):
        inner: Any = part.optimizer
        part.init_state_fn(inner, part.config)
        if isinstance(inner, torch.optim.AdamW):
            for parameter, state in inner.state.items():
                state.setdefault("step", torch.zeros((), device=parameter.device))


def sharded_optimizer(optimizer: Any, model: Any, is_loading: bool) -> Any:
    """Return what is saved of an optimizer, or filled in when it is loaded, in any layout.

    model: sharded state of the modules that it trains.
    """
    if not any(_distributed_parts(optimizer)):
        return optimizer.sharded_state_dict(model, is_loading=is_loading)
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    states = {}
    for index, part in enumerate(parts):
        # As Megatron calls them.
        prefix = f"chained_{index}." if len(parts) > 1 else ""
        shards = {} if part.is_stub_optimizer else sharded_states(part, model, prefix)
        own = {} if part.is_stub_optimizer else part.state_dict()
        states[index] = {**own, "param_state": shards}
    return states if len(parts) > 1 else states[0]


def load_optimizer(optimizer: Any, state: dict[Any, Any]) -> None:
    """Take an optimizer's state from a checkpoint, in whatever layout it was saved."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    states = [state] if len(parts) == 1 else [state[index] for index in range(len(parts))]
    for part, own in zip(parts, states, strict=True):
        if isinstance(part, DistributedOptimizer) and not part.is_stub_optimizer:
            _load_shards(part, own)
        else:
            part.load_state_dict(own)


@torch.no_grad()
def _load_shards(part: DistributedOptimizer, state: dict[str, Any]) -> None:
    """Load the parameter groups, and then this rank's shard of every moment.

    The counts of steps are out of the way meanwhile: no checkpoint has them by parameter.
    """
    left_out = ("param_state", "param_state_sharding_type")
    part.load_state_dict({key: value for key, value in state.items() if key not in left_out})
    held = part.optimizer.state
    is_torch = isinstance(part.optimizer, torch.optim.AdamW)
    steps = {p: held[p].pop("step").clone() for p in held} if is_torch else {}
    for number, (parameter, _, _) in enumerate(shard_tensors(part)):
        pieces = state["param_state"][number]
        values = {name: torch.cat([box.view(-1) for box in pieces[name]]) for name in pieces}
        part._set_main_param_and_optimizer_states(parameter, values)
    for parameter, step in steps.items():
        held[parameter]["step"] = step


def _distributed_parts(optimizer: Any) -> Iterator[DistributedOptimizer]:
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if isinstance(part, DistributedOptimizer) and not part.is_stub_optimizer:
            yield part
