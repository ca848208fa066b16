"""What is to be planned."""

from dataclasses import dataclass, field
from typing import Literal

from megatron_gad.planning.devices import Assumptions, Device
from megatron_gad.planning.memory import Precision
from megatron_gad.planning.shapes import ModelShape
from megatron_gad.planning.work import Lengths, StageWork


@dataclass(frozen=True)
class EngineUse:
    """How the rollout engine shares the devices of training.

    kind: servers hold their cache from start to end; the embedded engine only while it samples;
        an engine that is elsewhere holds nothing here.
    cache_tokens: of one copy's cache, whatever is free; None plans with what the phases leave.
    may_leave: it rests while training is at work.
    """

    kind: Literal["servers", "embedded", "elsewhere"] = "servers"
    cache_tokens: int | None = None
    may_leave: bool = True


@dataclass(frozen=True)
class Request:
    """Everything that a plan depends on, apart from layout and residency.

    stages: a step of each stage, in the run's order; plans are compared by the last one.
    micro_batch_size: rows of a microbatch. split_groups: the discriminator's too; otherwise it
        takes whole groups. logprob_chunk_size: tokens whose logits are held at once.
    is_fp8: matrices are multiplied in FP8. has_reference: the KL's reference lives on the host.
    num_data_prompts: usable rows of the data set; None where nobody counted them.
    engine: where it lives and how much cache it takes.
    """

    student: ModelShape
    discriminator: ModelShape
    device: Device
    num_gpus: int
    stages: tuple[StageWork, ...]
    lengths: Lengths
    precision: Precision
    is_fp8: bool = False
    has_reference: bool = True
    micro_batch_size: int = 4
    split_groups: bool = False
    logprob_chunk_size: int = 1024
    num_data_prompts: int | None = None
    assume: Assumptions = field(default_factory=Assumptions)
    engine: EngineUse = field(default_factory=EngineUse)

    @property
    def has_engine(self) -> bool:
        """Whether any stage samples, and so has an engine and a discriminator."""
        return any(stage.num_samples for stage in self.stages)


def microbatch_rows(request: Request, group_size: int) -> int:
    """Return the rows of one microbatch of the discriminator: whole groups, at least one."""
    unit = 1 if request.split_groups else 1 + group_size
    return max(1, request.micro_batch_size // unit) * unit


def num_microbatches(rows: float, rows_each: int, data_ranks: int) -> int:
    """Return the microbatches of one data rank for this many rows over all ranks."""
    return max(1, -(-int(rows) // (rows_each * data_ranks)))
