"""Do a checkpoint and the modules that are to read it have the same tensors?

Megatron reads whatever tensors it is asked for and takes no notice of others, so that a checkpoint
of a deeper model, or one with biases, would load into a smaller model without a word.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from transformers import PretrainedConfig

from megatron_gad.training.checkpoint_pickles import check_pickles
from megatron_gad.training.parallel import Parallel

# What a model's tensors begin with; a checkpoint has those of its optimizer beside them.
MODEL_PARTS = ("embedding.", "decoder.", "output_layer.")
PADDED = ("embedding.word_embeddings.weight", "output_layer.weight")
MOST_TENSOR_RANKS = 128
MOST_LISTED = 12


class Stored(NamedTuple):
    """A whole tensor of a checkpoint."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def checkpoint_tensors(folder: Path) -> dict[str, Stored]:
    """List a saved model's tensors under Megatron's names, without reading their values."""
    check_pickles(folder)
    found = dist_checkpointing.load_tensors_metadata(str(folder))
    return {
        name: Stored(tuple(tensor.global_shape), tensor.dtype)
        for name, tensor in found.items()
        if isinstance(tensor, ShardedTensor) and name.startswith(MODEL_PARTS)
    }


def check_tensors(
    folder: Path,
    stored: dict[str, Stored],
    sharded_state: dict[str, Any],
    hf_config: PretrainedConfig,
    place: Parallel,
) -> None:
    """Check that a saved model has exactly the tensors of the modules that are to read it.

    All ranks call it, and all raise the same error.

    Args:
        folder: of the saved model, for the message.
        stored: from ``checkpoint_tensors``.
        sharded_state: of this rank's modules.
        hf_config: the shape they were built from.
        place: this rank's.

    Raises:
        ValueError: names and shapes of the tensors that are missing, unknown or of another shape.
    """
    expected: dict[str, tuple[int, ...]] = {}
    for shapes in place.gather_over_world(_shapes(sharded_state)):
        expected |= shapes
    problems = [f"{name} {list(expected[name])} is missing" for name in expected.keys() - stored]
    for name, (shape, _) in stored.items():
        if name not in expected:
            problems.append(f"{name} {list(shape)} is not in the model")
        elif shape != expected[name] and not (
            name in PADDED and _differ_in_padding(shape, expected[name], hf_config.vocab_size)
        ):
            problems.append(f"{name} is {list(shape)}, the model has {list(expected[name])}")
    if problems:
        more = f"; and {len(problems) - MOST_LISTED} more" if len(problems) > MOST_LISTED else ""
        raise ValueError(
            f"{folder} does not fit the {hf_config.model_type!r} model of "
            f"{hf_config.name_or_path}/config.json: {'; '.join(sorted(problems)[:MOST_LISTED])}"
            f"{more}. Name the folder the run was started from with --hf-config"
        )


def _shapes(sharded_state: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the whole tensors that this rank has parts of."""
    apply_factories(sharded_state)
    return {
        tensor.key: tuple(tensor.global_shape)
        for tensor in nested_values(sharded_state)
        if isinstance(tensor, ShardedTensor)
    }


def _differ_in_padding(stored: tuple[int, ...], expected: tuple[int, ...], vocab_size: int) -> bool:
    """Whether two shapes differ in the vocabulary's padding only, which depends on the layout."""
    sizes = range(1, MOST_TENSOR_RANKS + 1)
    padded = {-(-vocab_size // size) * size for size in sizes}
    return {stored[0], expected[0]} <= padded and stored[1:] == expected[1:]
