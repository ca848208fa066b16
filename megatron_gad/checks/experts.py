"""Checks of the layout of experts against the ranks, and against whether any model has some.

What an expert's shape allows is checked with the rest of the shape, in ``models``.
"""

from collections.abc import Collection, Iterator

from megatron_gad.config.layout import OwnLayout, ParallelConfig
from megatron_gad.config.models import DiscriminatorConfig
from megatron_gad.models.families import load_hf_config, mixture_of
from megatron_gad.models.layout_rules import expert_world_problem
from megatron_gad.models.mixtures import Mixture

KEYS = ("expert_model_parallel_size", "expert_tensor_parallel_size")


def check_experts(
    student: str, discriminator: DiscriminatorConfig, parallel: ParallelConfig, world_size: int
) -> Iterator[str]:
    """Yield what is wrong with how experts are shared out over the ranks.

    A folder that cannot be read is reported elsewhere.

    Args:
        student: student.path.
        discriminator: with its folder, and a layout of its own if it has one.
        parallel: the student's layout.
        world_size: ranks of the run.
    """
    layout = discriminator.beside(parallel, experts_in(discriminator.path or student) is not None)
    if layout == parallel:
        folders = (student, discriminator.path)
        yield from _problems("parallel", folders, parallel, parallel, world_size)
        return
    yield from _problems("parallel", (student,), parallel, parallel, world_size)
    folders = (discriminator.path or student,)
    yield from _problems("discriminator", folders, layout, discriminator, world_size)


def _problems(
    table: str,
    folders: Collection[str],
    layout: ParallelConfig,
    written: ParallelConfig | OwnLayout,
    world_size: int,
) -> Iterator[str]:
    """Yield what is wrong in a table; written: what it says itself, apart from what it inherits."""
    if any(experts_in(folder) is not None for folder in folders):
        problem = expert_world_problem(layout, world_size, f"{table}.")
        if problem:
            yield problem
        return
    for key in KEYS:
        size = getattr(written, key)
        if size not in (None, 1):
            yield (
                f"{table}.{key} = {size} shares experts out, and its models have none; "
                "leave it out, or train a Qwen3-MoE or Mixtral model"
            )


def experts_in(folder: str) -> Mixture | None:
    """Return the experts of a folder's model; None without, or where it cannot be read."""
    try:
        return mixture_of(load_hf_config(folder)) if folder else None
    except (ValueError, OSError):
        return None
