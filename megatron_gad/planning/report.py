"""A plan as a text for people and as JSON for programs."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from megatron_gad.planning.devices import GIB, usable_bytes
from megatron_gad.planning.layout import Layout
from megatron_gad.planning.occupancy import MemoryPlan
from megatron_gad.planning.request import Request, swap_bytes
from megatron_gad.planning.search import Plan
from megatron_gad.planning.shapes import ModelShape
from megatron_gad.planning.time import StageTime, swap_seconds

ROLES = (
    *("student", "discriminator", "engine", "teacher"),
    *("activations", "swap_buffers", "kv_cache"),
)
SHOWN_PLANS = 6
HOUR = 3600


def format_report(request: Request, configured: Plan | str, plans: Sequence[Plan]) -> str:
    """Return the text.

    configured: the plan of the configuration's own layout, or why there is none.
    plans: of the search, fastest first; empty where nothing fits.
    """
    lines = [*_question(request), ""]
    if isinstance(configured, str):
        lines += [f"Configured layout: {configured}", ""]
    else:
        lines += [
            f"Configured layout: {configured.layout.describe()}",
            *_answer(request, configured),
        ]
        lines.append("")
    if plans and plans[0] == configured:
        lines.append("The configured layout is the fastest found.")
    elif plans:
        lines += [f"Fastest found: {plans[0].layout.describe()}", *_answer(request, plans[0])]
        lines += [_line("flags", flags(plans[0]))]
        if request.has_engine and request.engine.kind == "servers":
            lines += [_line("", server_flags(request, plans[0]))]
    if len(plans) > 1:
        lines += ["", f"The next of {len(plans):,} layouts that fit:", *_others(plans)]
    return "\n".join(lines)


def to_json(request: Request, configured: Plan | str, plans: Sequence[Plan]) -> dict[str, Any]:
    """Return the same as plain values: bytes, seconds and tokens, nothing rounded."""
    is_error = isinstance(configured, str)
    return {
        "device": request.device.name,
        "num_gpus": request.num_gpus,
        "usable_bytes": usable_bytes(request.device, request.assume),
        "student_parameters": request.student.num_parameters(),
        "discriminator_parameters": request.discriminator.num_parameters(is_scorer=True),
        "assumptions": vars(request.assume),
        "lengths": vars(request.lengths),
        "swap_bytes": swap_bytes(request) if request.has_engine else 0,
        "configured": {"problem": configured} if is_error else _plan_json(request, configured),
        "plans": [_plan_json(request, plan) for plan in plans[:SHOWN_PLANS]],
    }


def flags(plan: Plan) -> str:
    """Return the flags of the command that choose a plan's layout."""
    layout, own = plan.layout, plan.layout.discriminator
    words = [*_size_flags(layout)]
    if layout.sequence_parallel:
        words.append("--sequence-parallel")
    if layout.distributed_optimizer:
        words.append("--use-distributed-optimizer")
    if layout.recompute:
        words.append(f"--recompute-granularity {layout.recompute}")
    if own is not None:
        words.append(f"--discriminator.tensor-model-parallel-size {own.tensor}")
        words.append(f"--discriminator.pipeline-model-parallel-size {own.pipeline}")
    return " ".join(words)


def _size_flags(layout: Layout) -> Iterator[str]:
    """Yield the flags of the student's sizes; most of those that are 1 are left out."""
    yield f"--tensor-model-parallel-size {layout.tensor}"
    yield f"--pipeline-model-parallel-size {layout.pipeline}"
    if layout.context > 1:
        yield f"--context-parallel-size {layout.context}"
    if layout.virtual > 1:
        yield f"--virtual-pipeline-model-parallel-size {layout.virtual}"
    if layout.expert > 1:
        yield f"--expert-model-parallel-size {layout.expert}"
    if layout.expert_tensor:
        yield f"--expert-tensor-parallel-size {layout.expert_tensor}"


def server_flags(request: Request, plan: Plan) -> str:
    """Return the flags that make SGLang servers as large, as many and as greedy as a plan's."""
    rollout = next(phase for phase in plan.memory.phases if phase.phase == "rollout")
    held = rollout.by_role["engine"] + rollout.by_role["kv_cache"]
    layout, share = plan.layout, held / request.device.memory_bytes
    return (
        f"--sglang.tensor-parallel-size {layout.engine_tensor} "
        f"--sglang.num-servers {layout.num_engines // layout.data} "
        f"--sglang.mem-fraction-static {share:.2f}"
    )


def _question(request: Request) -> Iterator[str]:
    device, lengths = request.device, request.lengths
    usable = usable_bytes(device, request.assume) / GIB
    yield (
        f"{request.num_gpus} x {device.name}: {device.memory_bytes / GIB:.1f} GiB each, "
        f"{usable:.1f} usable"
    )
    yield _line("student", _describe(request.student, is_scorer=False))
    if request.has_discriminator:
        yield _line("discriminator", _describe(request.discriminator, is_scorer=True))
    yield _line(
        "tokens",
        f"mean prompt {lengths.prompt}, mean response {lengths.response} (assumed); "
        f"at most {lengths.max_prompt} and {lengths.max_response}",
    )
    prompts = request.num_data_prompts
    yield _line("prompts", f"{prompts:,}" if prompts else "not known; --num-prompts gives epochs")


def _describe(shape: ModelShape, is_scorer: bool) -> str:
    return (
        f"{shape.model_type}, {shape.num_layers} layers, width {shape.hidden_size}, "
        f"{shape.num_parameters(is_scorer):,} parameters"
    )


def _answer(request: Request, plan: Plan) -> Iterator[str]:
    yield "  GiB a GPU by phase:"
    roles = [role for role in ROLES if any(role in phase.by_role for phase in plan.memory.phases)]
    yield _row("", [*roles, "total"])
    for phase in plan.memory.phases:
        sizes = [phase.by_role.get(role, 0) for role in roles]
        yield _row(phase.phase, [f"{size / GIB:.1f}" for size in (*sizes, phase.total)])
    leaves = ", ".join(sorted(plan.memory.leaves)) or "nobody; everything stays"
    yield _line("must leave", leaves)
    yield _line("host memory", _host_memory(plan.memory))
    if request.has_engine:
        yield from _engine_lines(request, plan)
    yield "  Seconds a step:"
    yield _row("", [*plan.stages[0].by_phase, "step"])
    for stage in plan.stages:
        cells = (*stage.by_phase.values(), stage.step)
        yield _row(stage.stage, [f"{seconds:.1f}" for seconds in cells])
    yield from _epochs(plan.stages)
    for stage in plan.stages:
        if stage.overlaps:
            text = "the next step's rollout beside discriminator, student and moves"
            yield _line(stage.stage, text)
        if stage.reference != stage.step:
            ratio = stage.reference / stage.step
            text = f"{stage.reference:.1f} s a step the reference implementation's way"
            yield _line(stage.stage, f"{text}, {ratio:.2f} times as long")


def _engine_lines(request: Request, plan: Plan) -> Iterator[str]:
    tokens, lengths = plan.memory.cache_tokens, request.lengths
    if request.engine.kind == "replay":
        return
    yield _line(
        "KV cache",
        f"{tokens:,} tokens a copy of the engine: {tokens // lengths.row:,} rows at their mean "
        f"length, {tokens // lengths.max_row:,} at their longest; it decodes "
        f"{plan.stages[-1].rollout.batch:,} at a time",
    )
    seconds = swap_seconds(request, plan.layout)
    yield _line("weight swap", f"{swap_bytes(request) / GIB:.1f} GiB in {seconds:.1f} s")


def _host_memory(memory: MemoryPlan) -> str:
    words = f"{memory.host_bytes / GIB:.1f} GiB pinned for each GPU"
    if not memory.engine_host_bytes:
        return words
    kept = f"{memory.engine_host_bytes / GIB:.1f} GiB of weights to start engines again"
    return f"{words}; {kept}, on one rank of each copy of the model"


def _epochs(stages: Sequence[StageTime]) -> Iterator[str]:
    """Yield the hours of an epoch by phase, where the size of the data set is known."""
    if any(stage.epoch is None for stage in stages):
        return
    yield "  Hours an epoch:"
    yield _row("", [*stages[0].by_phase, "epoch"])
    for stage in stages:
        cells = (*(stage.epoch_by_phase or {}).values(), stage.epoch or 0.0)
        yield _row(stage.stage, [f"{seconds / HOUR:.2f}" for seconds in cells])


def _others(plans: Sequence[Plan]) -> Iterator[str]:
    for plan in plans[1:SHOWN_PLANS]:
        leaves = ", ".join(sorted(plan.memory.leaves)) or "nobody"
        yield f"  {plan.seconds:7.1f} s a step  {plan.layout.describe()}; leaves: {leaves}"


def _plan_json(request: Request, plan: Plan) -> dict[str, Any]:
    memory = plan.memory
    return {
        "layout": asdict(plan.layout) | {"gpus": plan.layout.world},
        "flags": flags(plan),
        "leaves": sorted(memory.leaves),
        "host_bytes": memory.host_bytes,
        "engine_host_bytes": memory.engine_host_bytes,
        "cache_tokens": memory.cache_tokens,
        "bytes_by_phase": {phase.phase: dict(phase.by_role) for phase in memory.phases},
        "swap_seconds": swap_seconds(request, plan.layout) if request.has_engine else 0.0,
        "stages": [
            {
                "stage": stage.stage,
                "seconds": stage.by_phase,
                "overlaps": stage.overlaps,
                "step_seconds": stage.step,
                "epoch_seconds_by_phase": stage.epoch_by_phase,
                "epoch_seconds": stage.epoch,
                "stage_seconds": stage.total,
                "reference_step_seconds": stage.reference,
            }
            for stage in plan.stages
        ],
    }


def _line(title: str, text: str) -> str:
    return f"  {title:<15}{text}"


def _row(title: str, cells: Sequence[str]) -> str:
    return f"    {title:<13}" + "".join(f"{cell:>15}" for cell in cells)
