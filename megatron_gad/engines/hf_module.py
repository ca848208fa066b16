"""The Hugging Face module that the embedded engine runs: built empty, filled by name, emptied."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from megatron_gad.engines.paged_attention import ATTENTION
from megatron_gad.models.families import load_hf_config, mixture_of
from megatron_gad.models.mixtures import under_hub_names


def build_module(hf_folder: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """Build the causal language model of a folder on the meta device, where it takes no memory.

    hf_folder: only its config.json is read.

    Raises ValueError for a model that the project does not support.
    """
    config = load_hf_config(hf_folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=ATTENTION, trust_remote_code=False
        )
    return model.requires_grad_(False).eval()


def holds_weights(model: PreTrainedModel) -> bool:
    """Say whether the module's weights have memory."""
    return next(model.parameters()).device.type != "meta"


def allocate_weights(model: PreTrainedModel, device: torch.device) -> None:
    """Give the weights memory on a device; their values are undefined until they are copied in."""
    model.to_empty(device=device)
    # to_empty separates what is tied, and leaves the rotary frequencies, which no checkpoint
    # holds, undefined.
    model.tie_weights()
    rotary_embedding = type(model.model.rotary_emb)
    model.model.rotary_emb = rotary_embedding(model.config).to(device)


def release_weights(model: PreTrainedModel) -> None:
    """Give the memory of the weights back."""
    model.to_empty(device="meta")


def named_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return views of all parameters under the names that checkpoints have them under.

    A module that holds the experts of a layer in one tensor gives one view per expert and matrix.
    """
    mixture = mixture_of(model.config)
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        weights.update(under_hub_names(name, parameter, mixture))
    return weights


@torch.no_grad()
def copy_weights(model: PreTrainedModel, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Copy every tensor into the parameter of its name, one at a time.

    named_tensors: every parameter once, in any dtype and on any device. The output layer of a
        model with tied embeddings is not a parameter of its own.

    Raises ValueError, after reading all of ``named_tensors``, so that ranks which gather them
    together stay together: names what is missing, unexpected, repeated, or of another shape.
    """
    missing = named_weights(model)
    known = frozenset(missing)
    problems: list[str] = []
    for name, tensor in named_tensors:
        parameter = missing.pop(name, None)
        if parameter is None:
            problems.append(f"{name} came twice" if name in known else f"{name} is unexpected")
        elif parameter.shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(parameter.shape)}"
            problems.append(f"{name} has the shape {shapes}")
        else:
            parameter.copy_(tensor)
    problems += [f"{name} is missing" for name in missing]
    if problems:
        raise ValueError(
            f"{len(problems)} problems with the weights given to {type(model).__name__}: "
            + "; ".join(problems[:20])
            + ". Give every parameter of the model once, under its Hugging Face name; with tied "
            "embeddings leave lm_head.weight out."
        )
