"""Every layout and residency that fits, fastest first; or what is missing."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from megatron_gad.planning.choice import choose_residency
from megatron_gad.planning.devices import GIB
from megatron_gad.planning.layout import Layout, layout_problems
from megatron_gad.planning.occupancy import MemoryPlan, memory_plans
from megatron_gad.planning.request import Request
from megatron_gad.planning.time import StageTime, stage_times

TENSOR_SIZES = (1, 2, 4, 8)
PIPELINE_SIZES = (1, 2, 4, 8, 16)
EXPERT_SIZES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Plan:
    """One way to run, with its memory and time."""

    layout: Layout
    memory: MemoryPlan
    stages: tuple[StageTime, ...]

    @property
    def seconds(self) -> float:
        """Return the seconds of a step of the last stage, by which plans are compared."""
        return self.stages[-1].step


def plan_layout(request: Request, layout: Layout, leaves: Collection[str] | None = None) -> Plan:
    """Return the plan of one layout, its engine included, with the residency that a run takes.

    leaves: the roles that leave, where that is not to be chosen.

    Raises:
        ValueError: the layout does not divide the models or the batch, or nothing fits; says which
            numbers, or which phase lacks how many bytes.
    """
    problems = divisibility_problems(request, layout)
    if problems:
        raise ValueError(f"{layout.describe()} is impossible: {'; '.join(problems)}")
    memory = choose_residency(request, layout, leaves)
    if memory.missing:
        raise ValueError(
            f"{layout.describe()} does not fit: {_describe_missing(request, layout, memory)}"
        )
    return _plan(request, layout, memory)


def find_plans(request: Request, base: Layout) -> list[Plan]:
    """Return the best residency of every layout that fits, fastest first.

    base: gives what is not searched: whether the optimizer is distributed, and the recompute that
        is tried beside full recompute; and the engine that is not on these GPUs. A layout may leave
        GPUs idle, so more GPUs are never slower. Both models are laid out alike, or as base has
        them.

    Raises:
        ValueError: nothing fits; names the layout that comes nearest and what it lacks.
    """
    plans, nearest = [], None
    for layout in layouts(request, base):
        found = _fitting(request, layout)
        if found:
            plans.append(min(found, key=_order))
        elif not plans:
            memory = min(memory_plans(request, layout), key=lambda memory: memory.missing)
            if nearest is None or memory.missing < nearest[1].missing:
                nearest = layout, memory
    if not plans:
        if nearest is None:
            raise ValueError(
                f"no layout of up to {request.num_gpus} GPUs divides the models and the batch; "
                "change --gpus or the prompts of a step"
            )
        raise ValueError(
            f"nothing fits {request.num_gpus} x {request.device.name}; nearest is "
            f"{nearest[0].describe()}: {_describe_missing(request, *nearest)}"
        )
    return sorted(plans, key=_order)


def layouts(request: Request, base: Layout) -> Iterator[Layout]:
    """Yield every layout that divides the models, the batch and the node.

    Those of one layout for both models; behind them base's own where it has two.
    """
    recomputes = (base.recompute, "full") if base.recompute != "full" else ("full",)
    for tensor in TENSOR_SIZES:
        for pipeline in PIPELINE_SIZES:
            for data in range(1, request.num_gpus // (tensor * pipeline) + 1):
                for expert in EXPERT_SIZES if request.student.num_experts else (1,):
                    for engine in _engine_sizes(request, base):
                        layout = replace(
                            base,
                            tensor=tensor,
                            pipeline=pipeline,
                            data=data,
                            virtual=base.virtual if pipeline == base.pipeline else 1,
                            expert=expert,
                            # Spread out, experts stay whole.
                            expert_tensor=1 if expert > 1 else base.expert_tensor,
                            engine_tensor=engine,
                            engines=None if request.engine.is_here else base.engines,
                            sequence_parallel=tensor > 1,
                            discriminator=None,
                        )
                        if not divisibility_problems(request, layout):
                            yield from (replace(layout, recompute=r) for r in recomputes)
    if base.discriminator is not None:
        engines = None if request.engine.is_here else base.engines
        sizes = _engine_sizes(request, base)
        own = [replace(base, engine_tensor=size, engines=engines) for size in sizes]
        yield from (each for each in own if not divisibility_problems(request, each))


def _engine_sizes(request: Request, base: Layout) -> tuple[int, ...]:
    """Return the GPUs that a copy of the engine may have; elsewhere that is settled."""
    return TENSOR_SIZES if request.engine.is_here else (base.engine_tensor,)


def divisibility_problems(request: Request, layout: Layout) -> list[str]:
    """Return what a layout does not divide: both models, the batch of each stage, the node."""
    problems = layout_problems(request.student, layout)
    problems += _engine_problems(request, layout)
    own = layout.of_discriminator
    if request.has_discriminator:
        found = layout_problems(request.discriminator, replace(own, engine_tensor=1))
        problems += [problem for problem in found if problem not in problems]
    for stage in request.stages:
        sizes = {layout.data, own.data} if stage.uses_discriminator else {layout.data}
        problems += [
            f"{size} data ranks do not divide the {stage.num_prompts} prompts of a {stage.kind} "
            "step"
            for size in sorted(sizes)
            if stage.num_prompts % size
        ]
    if layout.world > request.num_gpus:
        problems.append(f"it takes {layout.world} GPUs, there are {request.num_gpus}")
    if own.world != layout.world and request.has_discriminator:
        problems.append(
            f"the discriminator's layout takes {own.world} GPUs and the student's {layout.world}; "
            "both share the same"
        )
    if max(layout.tensor, own.tensor, layout.engine_tensor) > request.device.gpus_per_node:
        problems.append(
            f"tensor parallelism spans more than the {request.device.gpus_per_node} GPUs of a node"
        )
    return problems


def _engine_problems(request: Request, layout: Layout) -> Iterator[str]:
    """Yield why the engine's copies do not fit the training ranks that own them."""
    size = layout.engine_tensor
    ranks = min(layout.model_group, request.device.gpus_per_node)
    if not request.engine.is_here:
        if (layout.engines or 0) % layout.data:
            yield f"{layout.data} data ranks do not divide the {layout.engines} engines elsewhere"
        return
    if layout.engines is None and ranks % size:
        yield f"engine's size {size} does not divide the {ranks} ranks of a model on a node"
    if size * layout.num_engines > layout.world:
        yield f"{layout.num_engines} engines of {size} GPUs are on {layout.world} GPUs"


def _order(plan: Plan) -> tuple[float, int, int, int]:
    """Order plans by time; among equals fewer GPUs, smaller shards and fewer moves come first."""
    layout = plan.layout
    return plan.seconds, layout.world, layout.model_group, len(plan.memory.leaves)


def _fitting(request: Request, layout: Layout) -> list[Plan]:
    """Return a plan for every residency of a layout that fits."""
    return [
        _plan(request, layout, memory)
        for memory in memory_plans(request, layout)
        if not memory.missing
    ]


def _plan(request: Request, layout: Layout, memory: MemoryPlan) -> Plan:
    return Plan(layout, memory, stage_times(request, layout, memory))


def _describe_missing(request: Request, layout: Layout, memory: MemoryPlan) -> str:
    """Say which phase lacks how much, who holds it, and what would help."""
    phase = max(memory.phases, key=lambda phase: phase.missing)
    held = ", ".join(f"{role} {size / GIB:.1f}" for role, size in phase.by_role.items() if size)
    bound = request.max_tokens_per_microbatch
    gone = f" with {', '.join(sorted(memory.leaves))} away when idle" if memory.leaves else ""
    remedies = {
        "more or larger GPUs": True,
        "parallel.use_distributed_optimizer": not layout.distributed_optimizer,
        "a smaller micro_batch_size": request.micro_batch_size > 1 and bound is None,
        "a smaller max_tokens_per_microbatch": (bound or 0) > request.lengths.max_row,
        "discriminator.split_groups": request.has_discriminator and not request.split_groups,
        "shorter data.max_*_tokens": True,
    }
    return (
        f"the {phase.phase} phase needs {phase.total / GIB:.1f} GiB a GPU ({held}){gone} and "
        f"{phase.usable / GIB:.1f} GiB are usable: {phase.missing / GIB:.1f} GiB are missing; "
        f"use {', '.join(words for words, helps in remedies.items() if helps)}"
    )
