"""Checks of the layout of experts against the ranks, and against whether any model has some.

What an expert's shape allows is checked with the rest of the shape, in ``model_checks``.
"""

from collections.abc import Collection, Iterator

from megatron_gad.models.families import load_hf_config, mixture_of
from megatron_gad.models.layout_rules import expert_world_problem
from megatron_gad.training.options import ParallelConfig

KEYS = ("expert_model_parallel_size", "expert_tensor_parallel_size")


def check_experts(
    parallel: ParallelConfig, folders: Collection[str], world_size: int
) -> Iterator[str]:
    """Yield what is wrong with how experts are shared out over the ranks.

    Args:
        parallel: the layout.
        folders: the Hugging Face folders of the models with this layout; an empty name is left
            out, and a folder that cannot be read is reported elsewhere.
        world_size: ranks of the run.
    """
    if any(_has_experts(folder) for folder in folders):
        problem = expert_world_problem(parallel, world_size, "parallel.")
        if problem:
            yield problem
        return
    for key in KEYS:
        size = getattr(parallel, key)
        if size not in (None, 1):
            yield (
                f"parallel.{key} = {size} shares experts out, and no model of the run has any; "
                "leave it out, or train a Qwen3-MoE or Mixtral model"
            )


def _has_experts(folder: str) -> bool:
    try:
        return bool(folder) and mixture_of(load_hf_config(folder)) is not None
    except (ValueError, OSError):
        return False
