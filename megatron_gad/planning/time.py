"""Seconds of a step: passes through both models, communication, weight swap, moves to the host."""

import math
from dataclasses import dataclass, replace

from megatron_gad.config.stage_section import StageWork
from megatron_gad.planning.layout import Layout, stage_parameters
from megatron_gad.planning.occupancy import MemoryPlan
from megatron_gad.planning.request import (
    Grouping,
    Request,
    discriminator_rows,
    microbatch_rows,
    num_microbatches,
    rows_that_share,
    student_rows,
    swap_bytes,
)
from megatron_gad.planning.rollout_time import RolloutTime, rollout_time
from megatron_gad.planning.shapes import ModelShape
from megatron_gad.planning.work import Lengths, reference_work

BF16_BYTES = 2


@dataclass(frozen=True)
class StageTime:
    """Seconds of one step of a stage by phase, and of the reference's way of the same step.

    moves: between device and host, and an engine's sleep and wake. reference: the same phases the
    way of the reference implementation, on the same devices, with the same residency, in turns.
    overlaps: the rollout is of the next step, at work beside the rest of this one.
    """

    stage: str
    swap: float
    rollout: RolloutTime
    discriminator: float
    student: float
    moves: float
    reference: float
    steps: float | None
    steps_per_epoch: float | None
    overlaps: bool = False

    @property
    def by_phase(self) -> dict[str, float]:
        """Return the seconds of each phase of a step."""
        return {
            "swap": self.swap,
            "rollout": self.rollout.total,
            "discriminator": self.discriminator,
            "student": self.student,
            "moves": self.moves,
        }

    @property
    def step(self) -> float:
        """Return the seconds of a step.

        The sum of its phases; with overlap swap + max(rollout, discriminator + student + moves),
        because the engine takes the weights before it starts on the next step's rollouts.
        """
        if self.overlaps:
            training = self.discriminator + self.student + self.moves
            return self.swap + max(self.rollout.total, training)
        return sum(self.by_phase.values())

    @property
    def epoch_by_phase(self) -> dict[str, float] | None:
        """Return the seconds of each phase in an epoch; None where ``epoch`` is."""
        if self.steps_per_epoch is None:
            return None
        return {phase: self.steps_per_epoch * each for phase, each in self.by_phase.items()}

    @property
    def epoch(self) -> float | None:
        """Return the seconds of an epoch; None where the size of the data set is not known."""
        return None if self.steps_per_epoch is None else self.steps_per_epoch * self.step

    @property
    def total(self) -> float | None:
        """Return the seconds of the stage; None where its steps are not known."""
        return None if self.steps is None else self.steps * self.step


def stage_times(request: Request, layout: Layout, memory: MemoryPlan) -> tuple[StageTime, ...]:
    """Return the seconds of one step of every stage, in their order."""
    return tuple(stage_time(request, layout, memory, work) for work in request.stages)


def stage_time(request: Request, layout: Layout, memory: MemoryPlan, work: StageWork) -> StageTime:
    """Return the seconds of one step of a stage."""
    samples = work.num_samples > 0
    swap = swap_seconds(request, layout) if samples else 0.0
    moves = move_seconds(request, memory, work) if samples else 0.0
    rollout = rollout_time(request, layout, work, memory.cache_tokens)
    theirs = reference_work(work)
    alone = replace(request, shares_prompts=False)
    reference = swap + moves + rollout_time(request, layout, theirs, memory.cache_tokens).total
    reference += student_seconds(alone, layout, theirs)
    reference += discriminator_seconds(alone, layout, theirs)
    prompts = request.num_data_prompts
    return StageTime(
        stage=work.kind,
        swap=swap,
        rollout=rollout,
        discriminator=discriminator_seconds(request, layout, work),
        student=student_seconds(request, layout, work),
        moves=moves,
        reference=reference,
        steps=work.num_steps(prompts),
        steps_per_epoch=None if prompts is None else max(1.0, prompts / work.num_prompts),
        overlaps=work.overlaps,
    )


def student_seconds(request: Request, layout: Layout, work: StageWork) -> float:
    """Return the seconds of the student's passes, the reference's and a teacher's included."""
    passes, rows = (work.student_forwards, work.student_trained), student_rows(work)
    seconds = _model_seconds(request, layout, request.student, passes, rows, is_scorer=False)
    if request.teacher is None:
        return seconds
    passes = (work.teacher_forwards, 0.0)
    return seconds + _model_seconds(request, layout, request.teacher, passes, rows, False)


def discriminator_seconds(request: Request, layout: Layout, work: StageWork) -> float:
    """Return the seconds of the discriminator's passes."""
    passes = (work.discriminator_forwards, work.discriminator_trained)
    rows = discriminator_rows(request, work)
    layout, shape = layout.of_discriminator, request.discriminator
    return _model_seconds(request, layout, shape, passes, rows, is_scorer=True)


def forward_flops(shape: ModelShape, length: int, is_scorer: bool) -> float:
    """Return the operations of a forward pass for one token of a row of this length.

    2 for every entry of a matrix that the token meets, and for causal attention 2 matrices of
    length / 2 entries a head and width: 2 length heads head_dim for each layer.
    """
    attention = 2 * shape.num_layers * shape.num_heads * shape.head_dim * length
    return 2 * shape.multiplied_parameters(is_scorer) + attention


def row_flops(shape: ModelShape, lengths: Lengths, sharing: int, is_scorer: bool) -> float:
    """Return the operations of a forward pass for one row, of which so many share a prompt.

    The response of r tokens attends to the whole prompt of p, so that each of its tokens meets
    p + r / 2 keys, which is what a token of a row of 2 p + r tokens meets.
    """
    prompt, response = lengths.prompt, lengths.response
    of_prompt = prompt * forward_flops(shape, prompt, is_scorer)
    of_response = response * forward_flops(shape, 2 * prompt + response, is_scorer)
    return of_prompt / sharing + of_response


def _model_seconds(
    request: Request,
    layout: Layout,
    shape: ModelShape,
    passes: tuple[float, float],
    rows: Grouping,
    is_scorer: bool,
) -> float:
    """Return the seconds of a model's rows that pass forward only, and of rows that train.

    A training pass costs three forward passes, four with full recompute; a pipeline adds its
    bubble, (PP - 1) / (VPP microbatches) of the time, and waits for its last stage, with the head.
    """
    forwards, trained = passes
    if not forwards + trained:
        return 0.0
    assume, device = request.assume, request.device
    again = 1 if layout.recompute == "full" else 0
    lengths = request.lengths
    sharing = rows_that_share(request, layout, rows)
    tokens = (lengths.prompt / sharing + lengths.response) * assume.padding
    one = row_flops(shape, lengths, sharing, is_scorer) * assume.padding
    mfu = assume.fp8_mfu * device.fp8_flops if request.is_fp8 else assume.mfu * device.bf16_flops
    compute = one * (forwards + (3 + again) * trained) / (mfu * layout.world)
    # Backward exchanges as much as forward does.
    exchanged = (forwards + (2 + again) * trained) * tokens / layout.copies
    compute += exchanged * _exchange_seconds(request, layout, shape)
    rows_each = microbatch_rows(request, layout, rows, lengths.prompt, lengths.response)
    microbatches = num_microbatches(forwards + trained, rows_each, layout.data)
    bubble = (layout.pipeline - 1) / (microbatches * layout.virtual)
    compute *= _imbalance(shape, layout, is_scorer) * (1 + bubble)
    updates = 1 if trained else 0
    return compute + updates * _gradient_seconds(request, layout, shape, is_scorer)


def _imbalance(shape: ModelShape, layout: Layout, is_scorer: bool) -> float:
    """Return the work of the last pipeline stage, which has the head, over that of a mean stage."""
    total = shape.multiplied_parameters(is_scorer)
    head = shape.hidden_size if is_scorer else shape.embedding_parameters
    return ((total - head) / layout.pipeline + head) / (total / layout.pipeline)


def _exchange_seconds(request: Request, layout: Layout, shape: ModelShape) -> float:
    """Return the seconds that one token's activations travel in a forward pass, not overlapped.

    Tensor parallel: two all-reduces of h values a layer, each 2 (TP - 1) / TP of the bytes.
    Experts: k copies of h values there and back, (EP - 1) / EP of them to another rank.
    """
    bandwidth = request.device.link_bandwidth * request.assume.link_efficiency
    value = shape.hidden_size * BF16_BYTES
    num_layers = shape.num_layers / layout.pipeline
    reduced = 2 * value * 2 * (layout.tensor - 1) / layout.tensor
    sent = 2 * value * shape.experts_per_token * (layout.expert - 1) / layout.expert
    sent *= shape.num_moe_layers / shape.num_layers / layout.tensor
    return num_layers * (reduced + sent) / bandwidth


def _gradient_seconds(
    request: Request, layout: Layout, shape: ModelShape, is_scorer: bool
) -> float:
    """Return the seconds of summing a model's gradients over data ranks, once a step.

    float32 gradients are reduced and spread again (4 + 4 bytes a parameter), or, with the
    distributed optimizer, the updated weights are (4 + 2).
    """
    stages = stage_parameters(shape, layout, is_scorer)
    spread = request.precision.weight if layout.distributed_optimizer else 4
    shared = max(
        stage.dense * (layout.copies - 1) / layout.copies
        + stage.expert * (layout.expert_copies - 1) / layout.expert_copies
        for stage in stages
    )
    return shared * (4 + spread) / _bandwidth(request, layout.world)


def swap_seconds(request: Request, layout: Layout) -> float:
    """Return the seconds of a weight swap: fixed, gathering, buckets, loading.

    A replay only takes part in the gathering.
    """
    device, assume = request.device, request.assume
    num_bytes = swap_bytes(request)
    gathered = num_bytes * (layout.model_group - 1) / layout.model_group
    gather = gathered / _bandwidth(request, layout.model_group)
    if request.engine.kind == "replay":
        return gather
    buckets = math.ceil(num_bytes / assume.bucket_bytes) * assume.bucket_seconds
    loaded = num_bytes / layout.engine_tensor
    load = 2 * loaded / (device.hbm_bandwidth * assume.hbm_efficiency)
    return assume.swap_seconds + gather + buckets + load


def move_seconds(request: Request, memory: MemoryPlan, work: StageWork) -> float:
    """Return the seconds of copies to and from the host, and of an engine's sleep and wake.

    A model that leaves goes out once a step and comes in once. For the reference's pass its weights
    come in, and then the student's own again; those go out before only where they had stayed. A
    teacher comes in, and does not change.
    """
    assume = request.assume
    bandwidth = request.device.host_bandwidth * assume.host_efficiency
    moved = 2 * memory.student.kept if "student" in memory.leaves else 0
    if memory.discriminator and "discriminator" in memory.leaves:
        moved += 2 * memory.discriminator.kept
    if work.has_reference:
        moved += (1 if "student" in memory.leaves else 3) * memory.student.weights
    if work.teacher_forwards:
        moved += memory.teacher_weights
    return moved / bandwidth + (assume.engine_seconds if "engine" in memory.leaves else 0.0)


def _bandwidth(request: Request, num_ranks: int) -> float:
    """Return the bytes per second of a collective over this many consecutive ranks."""
    device = request.device
    within = num_ranks <= device.gpus_per_node
    speed = device.link_bandwidth if within else device.network_bandwidth
    return speed * request.assume.link_efficiency
