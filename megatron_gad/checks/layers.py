"""Checks of arithmetic against each model's layers: those of a pipeline rank, and their width."""

from collections.abc import Iterator

from megatron_gad.config.compute import FP8_BLOCK, ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.models.families import load_hf_config
from megatron_gad.models.layout_rules import layer_problems


def check_layers(
    student: str,
    discriminator: str,
    layouts: tuple[ParallelConfig, ParallelConfig],
    compute: ComputeConfig,
) -> Iterator[str]:
    """Yield which counts of layers are none that a model can have, and which blocks do not fit.

    A folder that cannot be read is reported elsewhere.

    Args:
        student: student.path.
        discriminator: discriminator.path; empty where it starts from the student.
        layouts: of student and discriminator.
        compute: with the counts and the recipe, which hold for both.
    """
    yield from _problems(student, layouts[0], compute, f"student.path = {student!r}")
    if discriminator:
        model = f"discriminator.path = {discriminator!r}"
        yield from _problems(discriminator, layouts[1], compute, model)
    elif layouts[0] != layouts[1]:
        model = f"student.path = {student!r}, from which the discriminator starts"
        yield from _problems(student, layouts[1], compute, model)


def _problems(
    path: str, layout: ParallelConfig, compute: ComputeConfig, model: str
) -> Iterator[str]:
    try:
        shape = load_hf_config(path) if path else None
    except (ValueError, OSError):
        return
    if shape is None:
        return
    yield from layer_problems(layout, compute, shape, "compute.", model)
    is_blockwise = compute.fp8_format is not None and compute.fp8_recipe == "blockwise"
    if is_blockwise and layout.sequence_parallel and shape.hidden_size % FP8_BLOCK:
        yield (
            "compute.fp8_recipe = 'blockwise' with sequence_parallel = True gathers whole blocks, "
            f"and their {FP8_BLOCK} values do not divide hidden_size = {shape.hidden_size} of "
            f"{model}; use 'tensorwise', or leave sequence_parallel out"
        )
