"""Which of the possible residencies a run takes, and the lines that tell it."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from megatron_gad.planning.devices import GIB
from megatron_gad.planning.layout import Layout
from megatron_gad.planning.occupancy import MemoryPlan, memory_plans
from megatron_gad.planning.request import Request
from megatron_gad.planning.time import StageTime, move_seconds


@dataclass(frozen=True)
class Residency:
    """Who leaves the devices of a run.

    reason: what decided it. stages: seconds of a step of each stage; empty where the device's speed
    is not known. caveats: what those leave out.
    """

    memory: MemoryPlan
    reason: str
    stages: tuple[StageTime, ...] = ()
    caveats: tuple[str, ...] = ()


def choose_residency(
    request: Request, layout: Layout, leaves: Collection[str] | None = None
) -> MemoryPlan:
    """Return the memory of the cheapest residency that fits; of the nearest one where none does.

    leaves: the roles that leave, where that is not to be chosen; an engine that is elsewhere, or
        a discriminator that no stage has, cannot leave.
    """
    plans = [*memory_plans(request, layout)]
    if leaves is not None:
        possible = max((plan.leaves for plan in plans), key=len)
        return next(plan for plan in plans if plan.leaves == possible.intersection(leaves))
    fitting = [plan for plan in plans if not plan.missing]
    if not fitting:
        return min(plans, key=lambda plan: plan.missing)
    return min(fitting, key=lambda plan: (_moves(request, plan), len(plan.leaves)))


def _moves(request: Request, plan: MemoryPlan) -> float:
    return sum(move_seconds(request, plan, stage) for stage in request.stages)


def describe_residency(residency: Residency) -> Iterator[str]:
    """Yield lines: why, who leaves, bytes of each phase on the fullest device, seconds of each."""
    memory = residency.memory
    yield residency.reason
    yield f"leaves the device: {', '.join(sorted(memory.leaves)) or 'nobody, everything stays'}"
    for phase in memory.phases:
        held = ", ".join(f"{role} {_gib(size)}" for role, size in phase.by_role.items() if size)
        yield f"{phase.phase}: {_gib(phase.total)} GiB planned ({held})"
    if memory.host_bytes:
        yield f"host memory: {_gib(memory.host_bytes)} GiB pinned for each device"
    if memory.engine_host_bytes:
        yield (
            f"host memory: {_gib(memory.engine_host_bytes)} GiB of weights on the first rank of "
            "each copy of the model, for engines that have to be started again"
        )
    worst = max(memory.phases, key=lambda phase: phase.missing)
    if worst.missing:
        yield (
            f"the {worst.phase} phase does not fit: {_gib(worst.missing)} GiB more than the "
            f"{_gib(worst.usable)} GiB that may be used; tools/plan_run.py looks for a layout"
        )
    yield from _seconds(residency)


def _seconds(residency: Residency) -> Iterator[str]:
    """Yield a line for a step of each stage, or where its seconds are found."""
    for stage in residency.stages:
        parts = [f"{phase} {_rounded(each)}" for phase, each in stage.by_phase.items() if each]
        beside = ", the rollout beside training" if stage.overlaps else ""
        step = f"one {stage.stage} step: {_rounded(stage.step)} s estimated"
        yield f"{step} ({', '.join(parts)} s{beside})"
    if residency.stages:
        yield from residency.caveats
    else:
        yield (
            "seconds of each phase: measured in the run (metrics time/*), since the speed of this "
            "device is not known; tools/plan_run.py estimates them for a GPU type"
        )


def caveats(request: Request) -> Iterator[str]:
    """Yield what the estimated seconds of a run leave out because of its engine."""
    if not request.has_engine:
        return
    if request.engine.kind == "embedded":
        yield "sampling is estimated at an SGLang server's speed; the embedded engine takes longer"
    if request.engine.kind == "replay":
        yield "rollouts are replayed: no engine takes memory or time"
    if request.engine.is_here and not request.engine_rests:
        yield "engine and trainer work on the same devices at once; both take longer than estimated"


def _rounded(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.2g}"


def _gib(size: int) -> str:
    return f"{size / GIB:.3g}"
