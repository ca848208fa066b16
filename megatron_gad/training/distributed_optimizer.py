"""What Megatron's distributed optimizer needs around a checkpoint.

It was written for a fused Adam, which counts its steps once per parameter group. torch's Adam
counts in a tensor per parameter: Megatron saves the count from there, but makes states without one,
and gives all parameters the same tensor when it loads, which then counts once for each of them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from megatron.core.optimizer.cpu_offloading.hybrid_optimizer import HybridDeviceOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_gad.training.optimizer_shards import shard_tensors, sharded_states


def fill_moments(optimizer: Any) -> None:
    """Make the moments that a distributed optimizer has not made yet: 0 after 0 steps.

    It can save and load only what is there. A step from them is the first step. Optimizers of
    another kind stay as they are.
    """
    for part in _distributed_parts(optimizer):
        inner: Any = part.optimizer
        if isinstance(inner, HybridDeviceOptimizer):
            _fill_hybrid_moments(inner)
            continue
        if part.config.use_precision_aware_optimizer:
            _fill_fused_states(inner)
            continue
        part.init_state_fn(inner, part.config)
        if isinstance(inner, torch.optim.AdamW):
            for parameter, state in inner.state.items():
                state.setdefault("step", torch.zeros((), device=parameter.device))


def _fill_hybrid_moments(hybrid: HybridDeviceOptimizer) -> None:
    """Do so for an optimizer that is again several, on the device and on the host.

    Megatron saves what is gathered from those: moments, and main parameters as they are now.
    """
    for one in hybrid.sub_optimizers:
        for parameter in (p for group in one.param_groups for p in group["params"]):
            state = one.state[parameter]
            for name in ("exp_avg", "exp_avg_sq"):
                if name not in state:
                    state[name] = torch.zeros_like(parameter, requires_grad=False)
            if isinstance(one, torch.optim.AdamW):
                state.setdefault("step", torch.zeros((), device=parameter.device))
    hybrid._sync_sub_optimizers_state_to_hdo()


def _fill_fused_states(fused: Any) -> None:
    """Do so for Transformer Engine's Adam where it chooses the types of its states.

    Megatron leaves the second argument out, which the versions that go with it require.
    """
    for parameter in (p for group in fused.param_groups for p in group["params"]):
        if not fused.state[parameter]:
            fused.initialize_state(parameter, False)


@torch.no_grad()
def reload_main_parameters(optimizer: Any) -> None:
    """Let float32 main parameters begin at their parameters as they are now.

    Megatron leaves out those that Transformer Engine's Adam holds among its states.
    """
    optimizer.reload_model_params()
    for part in _distributed_parts(optimizer):
        inner: Any = part.optimizer
        if isinstance(inner, HybridDeviceOptimizer):
            continue
        for parameter, state in inner.state.items():
            if "master_param" in state:
                # A copy, as it is scaled in place for a type with a smaller range.
                values = parameter.detach().to(torch.float32, copy=True)
                inner.set_scaled_state(parameter, "master_param", values)


@torch.no_grad()
def set_main_parameters(optimizer: Any, values: Mapping[Any, torch.Tensor]) -> None:
    """Let float32 main parameters be what their parameters are rounded from.

    values: parameter -> its whole values, of parameters in 16 bits or fewer.
    """
    for part in _distributed_parts(optimizer):
        groups = zip(part.model_float16_groups, part.shard_fp32_from_float16_groups, strict=True)
        for parameters, shards in groups:
            for parameter, shard in zip(parameters, shards, strict=True):
                if parameter in values:
                    place = part._get_model_param_range_map(parameter)["param"]
                    shard.copy_(values[parameter].view(-1)[place.start : place.end])


def sharded_optimizer(optimizer: Any, model: Any, is_loading: bool) -> Any:
    """Return what is saved of an optimizer, or filled in when it is loaded, in any layout.

    model: sharded state of the modules that it trains.
    """
    if not any(_distributed_parts(optimizer)):
        return without_classes(optimizer.sharded_state_dict(model, is_loading=is_loading))
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    states = {}
    for index, part in enumerate(parts):
        # As Megatron calls them.
        prefix = f"chained_{index}." if len(parts) > 1 else ""
        shards = {} if part.is_stub_optimizer else sharded_states(part, model, prefix)
        own = {} if part.is_stub_optimizer else without_classes(part.state_dict())
        states[index] = {**own, "param_state": shards}
    return states if len(parts) > 1 else states[0]


def without_classes(state: Any) -> Any:
    """Return a nested state without the classes in it.

    An optimizer on the host notes in its groups what it is made of, and a checkpoint that holds a
    class is not read again.
    """
    if isinstance(state, dict):
        kept = {key: value for key, value in state.items() if not isinstance(value, type)}
        return {key: without_classes(value) for key, value in kept.items()}
    return [without_classes(item) for item in state] if isinstance(state, list) else state


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
    if isinstance(part.optimizer, HybridDeviceOptimizer):
        part.optimizer._sync_hdo_state_to_sub_optimizers()
    for parameter, step in steps.items():
        held[parameter]["step"] = step


def _distributed_parts(optimizer: Any) -> Iterator[DistributedOptimizer]:
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if isinstance(part, DistributedOptimizer) and not part.is_stub_optimizer:
            yield part
