"""Checks of the layout against the number of ranks, and against what else is chosen.

What a model's shape allows is checked in ``models``.
"""

from collections.abc import Iterator

from megatron_gad.checks.values import POSITIVE, violations
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import OwnLayout, ParallelConfig
from megatron_gad.models.layout_rules import size_problems, world_problem

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
    yield from _layout_problems("parallel", parallel, compute, world_size)


def check_own_layout(
    own: OwnLayout, parallel: ParallelConfig, compute: ComputeConfig, world_size: int
) -> Iterator[str]:
    """Yield what is wrong with the layout of the discriminator, where it is not the student's."""
    yield from violations("discriminator", own, dict.fromkeys(SIZES, POSITIVE))
    layout = own.beside(parallel)
    if layout != parallel:
        yield from _layout_problems("discriminator", layout, compute, world_size)
    sizes = [each.pipeline_model_parallel_size for each in (layout, parallel)]
    if compute.fp8_format and compute.fp8_recipe == "delayed" and sizes[0] != sizes[1]:
        # Transformer Engine takes the scales of both models together, in groups of a stage's ranks.
        yield (
            f"discriminator.pipeline_model_parallel_size = {sizes[0]} beside {sizes[1]} of the "
            "student does not go with compute.fp8_recipe = 'delayed', where the ranks of a stage "
            "share their scales: each would wait for another; make the two equal, or use "
            "'tensorwise', 'blockwise' or 'mxfp8'"
        )


def _layout_problems(
    table: str, layout: ParallelConfig, compute: ComputeConfig, world_size: int
) -> Iterator[str]:
    problem = world_problem(layout, world_size, f"{table}.")
    if problem:
        yield problem
    yield from size_problems(layout, f"{table}.")
    if layout.context_parallel_size > 1 and compute.pack_sequences:
        yield (
            f"compute.pack_sequences = True with {table}.context_parallel_size = "
            f"{layout.context_parallel_size}: context-parallel ranks share the tokens of padded "
            "rows only; leave one of them out"
        )
    is_fused = compute.transformer_impl == "transformer_engine"
    if layout.context_parallel_size > 1 and is_fused and not compute.bf16:
        # The one of its kernels that takes float32 takes whole rows only.
        yield (
            "compute.transformer_impl = 'transformer_engine' with bf16 = False and "
            f"{table}.context_parallel_size = {layout.context_parallel_size}: no attention of "
            "Transformer Engine shares float32 rows between ranks; set compute.bf16 = true, or use "
            "'local'"
        )
