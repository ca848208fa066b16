"""What the trainers of a run need to know of its configuration, and what follows from it."""

from dataclasses import dataclass, field

from megatron_gad.config.compute import FP8_BLOCK, ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.config.models import OptimizerConfig
from megatron_gad.data.partition import MicrobatchBound

FP8_TOKENS = 32


@dataclass(frozen=True)
class TrainerSettings:
    """What both models of a run share."""

    layout: ParallelConfig
    compute: ComputeConfig
    seed: int
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def length_multiple(self) -> int:
        """Return what divides the tokens of a row, or of a microbatch that is packed."""
        layout = self.layout
        multiple = layout.tensor_model_parallel_size if layout.sequence_parallel else 1
        if layout.context_parallel_size > 1:
            # A rank holds two chunks of every row.
            multiple *= 2 * layout.context_parallel_size
        if self.compute.fp8_format is None:
            return multiple
        # FP8 matrix products take token counts that are multiples of this, on every rank.
        gathers_blocks = layout.sequence_parallel and self.compute.fp8_recipe == "blockwise"
        return multiple * (FP8_BLOCK if gathers_blocks else FP8_TOKENS)

    @property
    def is_packed(self) -> bool:
        """Whether rows run one behind the other without padding."""
        compute = self.compute
        if compute.pack_sequences is not None:
            return compute.pack_sequences
        is_own_attention = compute.transformer_impl == "local"
        return self.layout.context_parallel_size == 1 and (is_own_attention or compute.bf16)

    @property
    def shares_prompts(self) -> bool:
        """Whether rows of a microbatch with equal prompts have it once."""
        return not self.why_prompts_repeat

    @property
    def why_prompts_repeat(self) -> str:
        """Why every row has its prompt for itself, in words; empty if prompts are shared."""
        compute = self.compute
        if compute.share_prompts is False:
            return "compute.share_prompts = false"
        if self.layout.context_parallel_size > 1:
            return "context parallelism cuts every row into as many chunks"
        if not self.is_packed:
            return "rows are not packed"
        if compute.transformer_impl != "local" and not compute.share_prompts:
            return (
                "Transformer Engine's way was never compared on a GPU; "
                "compute.share_prompts = true asks for it"
            )
        return ""

    def microbatch_bound(self) -> MicrobatchBound:
        """Return how large a microbatch may get."""
        compute = self.compute
        return MicrobatchBound(
            rows=compute.micro_batch_size,
            max_tokens=compute.max_tokens_per_microbatch,
            multiple_of=self.length_multiple(),
            is_packed=self.is_packed,
            shares_prompts=self.shares_prompts,
        )

    def count_multiple(self) -> int:
        """Return what divides the number of microbatches, for Megatron's interleaved schedule."""
        layout = self.layout
        is_interleaved = layout.virtual_pipeline_model_parallel_size is not None
        return layout.pipeline_model_parallel_size if is_interleaved else 1
