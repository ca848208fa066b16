"""Checks of the layout against the number of ranks, and against what else is chosen.

What a model's shape allows is checked in ``model_checks``.
"""

from collections.abc import Iterator

from megatron_gad.config_checks import POSITIVE, violations
from megatron_gad.models.layout_rules import size_problems, world_problem
from megatron_gad.training.options import ComputeConfig, ParallelConfig

SIZES = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
)


def check_parallel(
    parallel: ParallelConfig, compute: ComputeConfig, world_size: int
) -> Iterator[str]:
    """Yield what is wrong with the layout, apart from the models' shapes."""
    positive = dict.fromkeys((*SIZES, "distributed_timeout_minutes"), POSITIVE)
    yield from violations("parallel", parallel, positive)
    problem = world_problem(parallel, world_size, "parallel.")
    if problem:
        yield problem
    yield from size_problems(parallel, "parallel.")
    if parallel.context_parallel_size > 1 and compute.pack_sequences:
        yield (
            "compute.pack_sequences = True with parallel.context_parallel_size = "
            f"{parallel.context_parallel_size}: context-parallel ranks share the tokens of padded "
            "rows only; leave one of them out"
        )
