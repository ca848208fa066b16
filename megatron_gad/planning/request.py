"""What is to be planned."""

from dataclasses import dataclass, field
from typing import Literal

from megatron_gad.config.stage_section import StageWork
from megatron_gad.planning.devices import Assumptions, Device
from megatron_gad.planning.layout import Layout
from megatron_gad.planning.memory import Precision
from megatron_gad.planning.shapes import ModelShape
from megatron_gad.planning.work import Lengths


@dataclass(frozen=True)
class EngineUse:
    """How the rollout engine shares the devices of training.

    kind: servers hold their cache from start to end; the embedded engine only while it samples;
        an engine that is elsewhere holds nothing here; a replay holds nothing and samples nothing.
    cache_tokens: of one copy's cache, whatever is free; None plans with what the phases leave.
    max_rows: that one copy decodes at once, whatever its cache holds.
    keeps_weights: whoever owns a copy keeps the weights in host memory, to start it again.
    """

    kind: Literal["servers", "embedded", "elsewhere", "replay"] = "servers"
    cache_tokens: int | None = None
    max_rows: int | None = None
    keeps_weights: bool = False

    @property
    def is_here(self) -> bool:
        """Whether it has memory on the devices of training."""
        return self.kind in ("servers", "embedded")


@dataclass(frozen=True)
class Request:
    """Everything that a plan depends on, apart from layout and residency.

    stages: a step of each stage, in the run's order; plans are compared by the last one.
    micro_batch_size: rows of a microbatch, where max_tokens_per_microbatch does not bound it by
        tokens. split_groups: the discriminator's too; otherwise it takes whole groups.
    joins_attention: packed rows are attended one by one; see Microbatch.is_joined.
    shares_prompts: the rows of a group in a microbatch have their prompt once, unless a layout's
        context parallelism forbids it.
    logprob_chunk_size: tokens whose logits are held at once.
    is_fp8: matrices are multiplied in FP8.
    num_data_prompts: usable rows of the data set; None where nobody counted them.
    engine: where it lives and how much cache it takes.
    teacher: of a stage that has one of its own, in the student's layout; None without.
    """

    student: ModelShape
    discriminator: ModelShape
    device: Device
    num_gpus: int
    stages: tuple[StageWork, ...]
    lengths: Lengths
    precision: Precision
    is_fp8: bool = False
    micro_batch_size: int = 4
    max_tokens_per_microbatch: int | None = None
    split_groups: bool = False
    joins_attention: bool = False
    shares_prompts: bool = False
    logprob_chunk_size: int = 1024
    num_data_prompts: int | None = None
    assume: Assumptions = field(default_factory=Assumptions)
    engine: EngineUse = field(default_factory=EngineUse)
    teacher: ModelShape | None = None

    @property
    def has_engine(self) -> bool:
        """Whether any stage samples."""
        return any(stage.num_samples for stage in self.stages)

    @property
    def has_discriminator(self) -> bool:
        """Whether any stage has one."""
        return any(stage.uses_discriminator for stage in self.stages)

    @property
    def has_reference(self) -> bool:
        """Whether the host keeps the weights of an earlier student for any stage."""
        return any(stage.has_reference for stage in self.stages)

    @property
    def engine_rests(self) -> bool:
        """Whether the engine is at work only while training is not."""
        return not any(stage.overlaps for stage in self.stages)


def swap_bytes(request: Request) -> int:
    """Return the bytes of the student's weights, which one copy of the engine takes."""
    return request.student.num_parameters() * request.precision.engine


@dataclass(frozen=True)
class Grouping:
    """How the rows of a model's batch belong together.

    unit: rows that stay together in a microbatch. per_prompt: rows with equal prompts.
    """

    unit: int
    per_prompt: int


def student_rows(work: StageWork) -> Grouping:
    """Return how the student's rows belong together: those that its loss reads together stay."""
    return Grouping(work.student_unit, work.group_size if work.is_game else work.student_unit)


def discriminator_rows(request: Request, work: StageWork) -> Grouping:
    """Return how the discriminator's rows do: it keeps a whole group together, or none."""
    size = 1 + work.group_size
    return Grouping(1 if request.split_groups else size, size)


def rows_of_a_prompt(request: Request, layout: Layout, rows: Grouping) -> int:
    """Return how many rows have their prompt once for all of them if they meet.

    layout: of the model.
    """
    return rows.per_prompt if request.shares_prompts and layout.context == 1 else 1


def microbatch_rows(
    request: Request, layout: Layout, rows: Grouping, prompt: int, response: int
) -> int:
    """Return the rows of one microbatch: whole units, at least one.

    Rows that share prompts are bounded by tokens in any case: at least by those of as many rows at
    their longest. layout: of the model. prompt, response: tokens of every row.
    """
    sharing = rows_of_a_prompt(request, layout, rows)
    bound = request.max_tokens_per_microbatch
    if bound is None and sharing == 1:
        count = request.micro_batch_size
    else:
        bound = bound or request.micro_batch_size * request.lengths.max_row
        groups = bound // (prompt + sharing * response)
        # A group that does not fit is cut.
        count = groups * sharing or (bound - prompt) // response
    return max(1, count // rows.unit) * rows.unit


def rows_that_share(request: Request, layout: Layout, rows: Grouping) -> int:
    """Return how many rows of mean length in a microbatch have their prompt once for all of them.

    layout: of the model.
    """
    lengths = request.lengths
    held = microbatch_rows(request, layout, rows, lengths.prompt, lengths.response)
    return min(rows_of_a_prompt(request, layout, rows), held)


def microbatch_tokens(request: Request, layout: Layout, rows: Grouping) -> int:
    """Return the most tokens of one microbatch, rows at their longest; one unit has to fit."""
    lengths, bound = request.lengths, request.max_tokens_per_microbatch
    sharing = rows_of_a_prompt(request, layout, rows)
    unit = -(-rows.unit // sharing) * lengths.max_prompt + rows.unit * lengths.max_response
    if bound is None:
        # Of whole rows only whole units are taken.
        size = request.micro_batch_size
        bound = (size if sharing > 1 else size // rows.unit * rows.unit) * lengths.max_row
    return max(bound, unit)


def num_microbatches(rows: float, rows_each: int, data_ranks: int) -> int:
    """Return the microbatches of one data rank for this many rows over all ranks."""
    return max(1, -(-int(rows) // (rows_each * data_ranks)))
