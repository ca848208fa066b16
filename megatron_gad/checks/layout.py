"""Rules for the layouts of both models: sizes, ranks, experts, and the layers of a rank."""

from collections.abc import Iterator

from megatron_gad.checks.found import Models
from megatron_gad.checks.values import POSITIVE, violations
from megatron_gad.config.compute import FP8_BLOCK, ComputeConfig
from megatron_gad.config.layout import OwnLayout, ParallelConfig
from megatron_gad.models.layout_rules import (
    expert_world_problem,
    layer_problems,
    size_problems,
    world_problem,
)

EXPERT_SIZES = ("expert_model_parallel_size", "expert_tensor_parallel_size")
OWN_SIZES = ("tensor_model_parallel_size", "pipeline_model_parallel_size")
SIZES = (*OWN_SIZES, "context_parallel_size", *EXPERT_SIZES)


def check_parallel(
    parallel: ParallelConfig, compute: ComputeConfig, world_size: int
) -> Iterator[str]:
    """Yield what is wrong with the layout, apart from the models' shapes."""
    yield from violations("parallel", parallel, dict.fromkeys(SIZES, POSITIVE))
    yield from _world_problem("parallel.", parallel, world_size)
    yield from size_problems(parallel, "parallel.")
    yield from _context_problems(parallel, compute)


def check_own_layout(
    own: OwnLayout, parallel: ParallelConfig, compute: ComputeConfig, world_size: int
) -> Iterator[str]:
    """Yield what is wrong with the layout of the discriminator, if it is not the student's."""
    yield from violations("discriminator", own, dict.fromkeys(OWN_SIZES, POSITIVE))
    layout = own.beside(parallel)
    if layout != parallel:
        yield from _world_problem("discriminator.", layout, world_size)
    sizes = [each.pipeline_model_parallel_size for each in (layout, parallel)]
    if compute.fp8_format and compute.fp8_recipe == "delayed" and sizes[0] != sizes[1]:
        # Transformer Engine takes the scales of both models together, in groups of a stage's ranks.
        yield (
            f"discriminator.pipeline_model_parallel_size = {sizes[0]} beside {sizes[1]} of the "
            "student does not go with compute.fp8_recipe = 'delayed', where the ranks of a stage "
            "share their scales: each would wait for another; make the two equal, or use "
            "'tensorwise', 'blockwise' or 'mxfp8'"
        )


def check_experts(
    models: Models, layouts: tuple[ParallelConfig, ParallelConfig], world_size: int
) -> Iterator[str]:
    """Yield what is wrong with how experts are shared out over the ranks.

    Args:
        models: what was read of them.
        layouts: of student and discriminator.
        world_size: ranks of the run.
    """
    parallel, beside = layouts
    sharing = (models.student, *([models.discriminator] if beside == parallel else []))
    if any(folder.mixture is not None for folder in sharing):
        problem = expert_world_problem(parallel, world_size, "parallel.")
        if problem:
            yield problem
    else:
        yield from _sizes_without_experts(parallel)
    if beside != parallel and models.discriminator.mixture is not None:
        problem = expert_world_problem(beside, world_size, "the discriminator's ")
        if problem:
            yield problem


def check_layers(
    models: Models, layouts: tuple[ParallelConfig, ParallelConfig], compute: ComputeConfig
) -> Iterator[str]:
    """Yield which counts of layers a model cannot have, and which blocks do not fit its width.

    Args:
        models: what was read of them.
        layouts: of student and discriminator.
        compute: with the counts and the recipe, which hold for both.
    """
    for folder, layout in models.beside(*layouts):
        shape = folder.shape
        if shape is None:
            continue
        yield from layer_problems(layout, compute, shape, "compute.", folder.named)
        is_blockwise = compute.fp8_format is not None and compute.fp8_recipe == "blockwise"
        if is_blockwise and layout.sequence_parallel and shape.hidden_size % FP8_BLOCK:
            yield (
                "compute.fp8_recipe = 'blockwise' with sequence_parallel = True gathers whole "
                f"blocks, and their {FP8_BLOCK} values do not divide hidden_size = "
                f"{shape.hidden_size} of {folder.named}; use 'tensorwise', or leave "
                "sequence_parallel out"
            )


def _world_problem(table: str, layout: ParallelConfig, world_size: int) -> Iterator[str]:
    problem = world_problem(layout, world_size, table)
    if problem:
        yield problem


def _context_problems(parallel: ParallelConfig, compute: ComputeConfig) -> Iterator[str]:
    """Yield what does not go with ranks that share every row's tokens."""
    size = parallel.context_parallel_size
    if size > 1 and compute.pack_sequences:
        yield (
            f"compute.pack_sequences = True with parallel.context_parallel_size = "
            f"{size}: context-parallel ranks share the tokens of padded "
            "rows only; leave one of them out"
        )
    if size > 1 and compute.share_prompts:
        yield (
            f"compute.share_prompts = True with parallel.context_parallel_size = "
            f"{size}: context-parallel ranks take equal chunks of whole "
            "rows; leave one of them out"
        )
    is_fused = compute.transformer_impl == "transformer_engine"
    if size > 1 and is_fused and not compute.bf16:
        # The one of its kernels that takes float32 takes whole rows only.
        yield (
            "compute.transformer_impl = 'transformer_engine' with bf16 = False and "
            f"parallel.context_parallel_size = {size}: no attention of "
            "Transformer Engine shares float32 rows between ranks; set compute.bf16 = true, or use "
            "'local'"
        )


def _sizes_without_experts(parallel: ParallelConfig) -> Iterator[str]:
    for key in EXPERT_SIZES:
        size = getattr(parallel, key)
        if size not in (None, 1):
            yield (
                f"parallel.{key} = {size} shares experts out, and its models have none; "
                "leave it out, or train a Qwen3-MoE or Mixtral model"
            )
