"""The number of microbatches that an interleaved pipeline takes."""

from typing import TypeVar

from megatron_gad.training.options import ParallelConfig
from megatron_gad.types import Batch, PairBatch

AnyBatch = TypeVar("AnyBatch", Batch, PairBatch)


def fill_up(pieces: list[AnyBatch], layout: ParallelConfig) -> list[tuple[AnyBatch, bool]]:
    """Pair every microbatch with whether it counts, and add some that do not where one is needed.

    Megatron's interleaved schedule takes a multiple of the pipeline ranks. What is added is the
    smallest microbatch again, whose loss is multiplied by 0 and whose rows are dropped, so that it
    changes no result.
    """
    counting = [(piece, True) for piece in pieces]
    if layout.virtual_pipeline_model_parallel_size is None:
        return counting
    smallest = min(pieces, key=lambda piece: piece.tokens.numel())
    missing = -len(pieces) % layout.pipeline_model_parallel_size
    return [*counting, *[(smallest, False)] * missing]
