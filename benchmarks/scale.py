"""Bytes, messages and seconds of a step and of a checkpoint as a function of ranks, as tables.

    python -m benchmarks.scale [--models Qwen2.5-7B ...] [--gpus 8 64 1024] [--gpu-type h100-80g]

For the planner's fastest layout that fits. docs/scale.md says what the columns mean.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import tyro

from benchmarks.traffic import (
    FILES_OF_MODEL,
    FILES_OF_RANK,
    FILES_OF_SAVE,
    FLOAT32_BYTES,
    Group,
    Pass,
    Traffic,
    listed_bytes,
    load_traffic,
    pass_traffic,
    rollout_bytes,
    rollout_traffic,
    save_traffic,
    swap_traffic,
)
from megatron_gad.config.run import RunConfig
from megatron_gad.config.stages import AdversarialConfig
from megatron_gad.planning.devices import GIB, Assumptions, Device, device_of
from megatron_gad.planning.from_config import stage_works
from megatron_gad.planning.layout import Layout, stage_parameters
from megatron_gad.planning.memory import precision_of
from megatron_gad.planning.published import PUBLISHED
from megatron_gad.planning.request import (
    Grouping,
    Request,
    discriminator_rows,
    microbatch_rows,
    num_microbatches,
    rows_that_share,
    student_rows,
)
from megatron_gad.planning.saving import saved_bytes
from megatron_gad.planning.search import Plan, find_plans
from megatron_gad.planning.shapes import ModelShape, shape_from_config
from megatron_gad.planning.work import Lengths

# Metrics of a loss; they are a few bytes each.
NUM_METRICS = 8


@dataclass(frozen=True)
class Arguments:
    """What is counted.

    Attributes:
        models: names of published models; both models of a run have the same shape.
        gpus: how many there are, one row of the tables for each number.
        gpu_type: a100-80g, h100-80g, h200-141g or b200-192g.
        prompts: of a step. samples: of each prompt.
        prompt_tokens, response_tokens: mean lengths; the most are 2048 and 1536.
        hop_seconds: of a message from rank to rank, beside its bytes.
        host_write: bytes per second that a host writes to the file system.
        storage_write: bytes per second that the file system takes from all hosts.
        creates_per_second: files that the file system makes in one folder.
    """

    models: tuple[str, ...] = ("Qwen2.5-7B", "Qwen2.5-32B", "Llama-3.1-70B")
    gpus: tuple[int, ...] = (8, 64, 256, 1024)
    gpu_type: str = "h100-80g"
    prompts: int = 256
    samples: int = 8
    prompt_tokens: int = 150
    response_tokens: int = 400
    hop_seconds: float = 5e-6
    host_write: float = 5e9
    storage_write: float = 100e9
    creates_per_second: float = 5_000.0


def main() -> None:
    """Print the tables."""
    arguments = tyro.cli(Arguments, description=__doc__)
    steps, saves, loads = [], [], []
    for model in arguments.models:
        for num_gpus in arguments.gpus:
            request = _request(arguments, model, num_gpus)
            try:
                plan = find_plans(request, Layout(distributed_optimizer=True))[0]
            except ValueError as error:
                steps.append([model, num_gpus, str(error).partition(":")[0], *[""] * 7])
                continue
            steps.append([model, num_gpus, *_step_row(arguments, request, plan)])
            saves.append([model, num_gpus, *_save_row(arguments, request, plan.layout)])
            loads.append([model, num_gpus, *_load_row(arguments, request, plan.layout)])
    columns = ("tensor", "pipeline", "data", "swap", "rollouts")
    given = [f"{name}: GiB, s" for name in columns]
    title = ["model", "GPUs", "layout", *given, "calls", "of the step"]
    print("\n".join([*_table(title, steps), ""]))
    title = [
        "model",
        "GPUs",
        "a rank, GiB",
        "in all, GiB",
        "files",
        "told, MiB",
        "write, s",
        "all, s",
    ]
    print("\n".join([*_table(title, saves), ""]))
    title = [
        "model",
        "GPUs",
        "a rank reads, GiB",
        "receives, GiB",
        "is told, MiB",
        "lists, MiB",
        "read, s",
        "all, s",
    ]
    print("\n".join(_table(title, loads)))


def _request(arguments: Arguments, model: str, num_gpus: int) -> Request:
    """Return a step of the game in bf16."""
    shape = shape_from_config(PUBLISHED[model])
    game = AdversarialConfig(prompts_per_step=arguments.prompts, group_size=arguments.samples)
    return Request(
        student=shape,
        discriminator=shape,
        device=device_of(arguments.gpu_type),
        num_gpus=num_gpus,
        stages=stage_works(RunConfig(stages=("adversarial",), adversarial=game)),
        lengths=Lengths(arguments.prompt_tokens, arguments.response_tokens, 2048, 1536),
        precision=precision_of(bf16=True, fp8=False),
        shares_prompts=True,
    )


def _step_row(arguments: Arguments, request: Request, plan: Plan) -> list[str]:
    """Return the columns of a step, of the pipeline stage that sends longest."""
    layout = plan.layout
    stages = [step_traffic(request, layout, stage) for stage in range(layout.pipeline)]

    def time_of(traffic: Iterable[Traffic]) -> float:
        return sum(_seconds(each, layout, request.device, arguments) for each in traffic)

    parts = max(stages, key=lambda stage: time_of(each for part in stage.values() for each in part))
    passes = [*parts["discriminator"], *parts["reference"], *parts["student"]]
    columns: list[list[Traffic]] = [
        [each for each in passes if each.group == "tensor"],
        [each for each in passes if each.group in ("pipeline", "ends")],
        [each for each in passes if each.group in ("data", "model", "world")],
        parts["swap"],
        parts["rollouts"],
    ]
    shown = [
        f"{sum(x.num_bytes for x in column) / GIB:.2f}, {time_of(column):.2f}" for column in columns
    ]
    calls = sum(each.calls for part in parts.values() for each in part)
    share = time_of(each for column in columns for each in column) / plan.seconds
    words = layout.describe().partition(", engine")[0]
    again = ", recompute" if layout.recompute else ""
    return [words + again, *shown, f"{calls:,}", f"{share:.0%} of {plan.seconds:.0f} s"]


def step_traffic(request: Request, layout: Layout, stage: int) -> dict[str, list[Traffic]]:
    """Return what a rank of a pipeline stage sends in a step of the game, by part of the step."""
    work, width = request.stages[-1], request.precision.weight
    student, scorer = student_rows(work), discriminator_rows(request, work)
    prompts = work.num_prompts / layout.data
    groups = rollout_bytes(prompts, work.group_size, request.lengths)
    reference = _pass(request, layout, student, work.student_forwards, trains=False)
    policy = _pass(request, layout, student, work.student_trained)
    judged = _pass(request, layout, scorer, work.discriminator_trained, is_scorer=True)
    return {
        "swap": [*swap_traffic(request.student, layout, width)],
        "rollouts": [*rollout_traffic(layout, groups)],
        "discriminator": [*pass_traffic(judged, stage)],
        "reference": [*pass_traffic(reference, stage)],
        "student": [*pass_traffic(policy, stage)],
    }


def _pass(
    request: Request,
    layout: Layout,
    grouping: Grouping,
    rows: float,
    trains: bool = True,
    is_scorer: bool = False,
) -> Pass:
    """Return a data rank's pass over rows of mean length."""
    lengths, own = request.lengths, rows / layout.data
    each = microbatch_rows(request, layout, grouping, lengths.prompt, lengths.response)
    count = num_microbatches(rows, each, layout.data)
    sharing = rows_that_share(request, layout, grouping)
    predicted = own * lengths.response
    return Pass(
        shape=request.discriminator if is_scorer else request.student,
        layout=layout,
        is_scorer=is_scorer,
        value_bytes=request.precision.activation,
        microbatches=count,
        tokens=round(own * (lengths.prompt / sharing + lengths.response)),
        predicted=round(predicted),
        chunks=math.ceil(predicted / count / request.logprob_chunk_size),
        row_bytes=round(own * FLOAT32_BYTES * (1 if is_scorer else lengths.max_row)),
        trains=trains,
        num_metrics=NUM_METRICS,
    )


def _models(request: Request) -> list[tuple[ModelShape, bool]]:
    return [(request.student, False), (request.discriminator, True)]


def _share(request: Request, layout: Layout) -> float:
    """Return the bytes of a rank in a checkpoint: both models, their optimizers, the reference."""
    models = _models(request)
    of_rank = sum(saved_bytes(shape, layout, True, is_scorer) for shape, is_scorer in models)
    weights = max(stage.total for stage in stage_parameters(request.student, layout, False))
    return of_rank + weights * request.precision.weight / layout.data


def _fullest_stage(
    traffic: Callable[..., Iterator[Traffic]], request: Request, layout: Layout
) -> list[Traffic]:
    """Return what a rank sends for a checkpoint, of the pipeline stage that sends most."""
    models, width = _models(request), request.precision.weight
    stages = [[*traffic(models, layout, width, stage)] for stage in range(layout.pipeline)]
    return max(stages, key=lambda stage: sum(each.num_bytes for each in stage))


def _save_row(arguments: Arguments, request: Request, layout: Layout) -> list[str]:
    """Return the columns of a checkpoint that is written."""
    device = request.device
    of_rank = _share(request, layout)
    in_all = of_rank * layout.world
    files = 3 * (FILES_OF_RANK * layout.world + FILES_OF_MODEL) + FILES_OF_SAVE
    host = of_rank * min(layout.world, device.gpus_per_node) / arguments.host_write
    write = max(host, in_all / arguments.storage_write)
    sent = _fullest_stage(save_traffic, request, layout)
    told = sum(each.num_bytes for each in sent if each.kind == "gather") * layout.world
    seconds = write + files / arguments.creates_per_second
    seconds += sum(_seconds(each, layout, device, arguments) for each in sent)
    return [
        f"{of_rank / GIB:.2f}",
        f"{in_all / GIB:,.0f}",
        f"{files:,}",
        f"{told / 2**20:.0f}",
        f"{write:.1f}",
        f"{seconds:.1f}",
    ]


def _load_row(arguments: Arguments, request: Request, layout: Layout) -> list[str]:
    """Return the columns of a checkpoint that is read, once for its digests and once to be used.

    The reference is read as the student is, of which it has the weights.
    """
    device, width = request.device, request.precision.weight
    of_rank, models = _share(request, layout), _models(request)
    lists = sum(listed_bytes(shape, layout, width) for shape, _ in models)
    # To be checked; and for the objects and the tensors, which are apart if there are copies.
    in_all = 2 * of_rank * layout.world + lists * (3 if layout.data > 1 else 2) * layout.world
    host = in_all * min(1, device.gpus_per_node / layout.world) / arguments.host_write
    read = max(host, in_all / arguments.storage_write)
    sent = _fullest_stage(load_traffic, request, layout)
    received = sum(x.num_bytes for x in sent if (x.kind, x.group) == ("broadcast", "data"))
    told = sum(x.num_bytes for x in sent if (x.kind, x.group) == ("all_gather", "data"))
    seconds = read + sum(_seconds(each, layout, device, arguments) for each in sent)
    return [
        f"{2 * of_rank / GIB:.2f}",
        f"{received / GIB:.2f}",
        f"{told * layout.data / 2**20:.0f}",
        f"{lists / 2**20:.0f}",
        f"{read:.1f}",
        f"{seconds:.1f}",
    ]


def _seconds(traffic: Traffic, layout: Layout, device: Device, arguments: Arguments) -> float:
    """Return the time of the calls, if nothing overlaps: rings for bytes, trees for few of them."""
    size = _group_size(traffic.group, layout)
    # Consecutive ranks work on one copy of a model; the tensor-parallel ones come first.
    span = {"tensor": layout.tensor, "pipeline": layout.model_group, "ends": layout.model_group}
    is_near = span.get(traffic.group, layout.world) <= device.gpus_per_node
    bandwidth = device.link_bandwidth if is_near else device.network_bandwidth
    ring, tree = size - 1, math.log2(size)
    factor, hops = {
        "all_reduce": (2 * ring / size, 2 * tree),
        "reduce_scatter": (ring / size, ring),
        "all_gather": (ring, ring),
        "all_to_all": (ring / size, ring),
        "broadcast": (1, tree),
        "gather": (ring, ring),
        "scatter": (ring / size, ring),
        "send": (1, 1),
        "barrier": (0, 2 * tree),
    }[traffic.kind]
    sent = factor * traffic.num_bytes / (bandwidth * Assumptions().link_efficiency)
    return sent + traffic.calls * hops * arguments.hop_seconds


def _group_size(group: Group, layout: Layout) -> int:
    sizes = {"tensor": layout.tensor, "pipeline": layout.pipeline, "ends": 2, "data": layout.data}
    return sizes.get(group) or (layout.model_group if group == "model" else layout.world)


def _table(title: list[str], rows: list[list[object]]) -> Iterator[str]:
    yield "| " + " | ".join(title) + " |"
    yield "|" + "---|" * len(title)
    for row in rows:
        yield "| " + " | ".join(map(str, row)) + " |"


if __name__ == "__main__":
    main()
