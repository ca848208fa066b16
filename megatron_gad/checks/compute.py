"""Checks of arithmetic and memory against what this machine has, and which kernels a run will use.

What a machine has is looked up once and passed in as facts, so every rule can be tried anywhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from packaging.version import Version

from megatron_gad.checks.values import POSITIVE, violations
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.environment import local_rank

# What megatron-core 0.16.1 asks for.
TE_VERSIONS = (Version("2.9"), Version("2.12"))
# The compute capabilities from which and to which Transformer Engine takes a recipe, the second not
# included, and the first cards that have it.
RECIPE_CAPABILITY = {
    "delayed": ((8, 9), (99, 0), "Ada or Hopper"),
    "tensorwise": ((8, 9), (99, 0), "Ada or Hopper"),
    "blockwise": ((9, 0), (99, 0), "Hopper"),
    "mxfp8": ((10, 0), (12, 0), "Blackwell"),
}
# Optimizer states of these are scaled into their range.


@dataclass(frozen=True)
class Machine:
    """What a run would find here.

    capability: of this rank's GPU; None without CUDA.
    transformer_engine: its version; None where it is not installed.
    """

    capability: tuple[int, int] | None = None
    transformer_engine: str | None = None
    has_apex: bool = False
    has_flash_attention: bool = False


def this_machine() -> Machine:
    """Look up what is here; the GPU is asked for its properties and otherwise left alone."""
    has_cuda = torch.cuda.is_available()
    return Machine(
        capability=torch.cuda.get_device_capability(local_rank()) if has_cuda else None,
        transformer_engine=_transformer_engine_version(),
        has_apex=find_spec("apex") is not None,
        has_flash_attention=find_spec("flash_attn") is not None,
    )


def _transformer_engine_version() -> str | None:
    if find_spec("transformer_engine") is None:
        return None
    try:
        return version("transformer_engine")
    except PackageNotFoundError:
        return "0"


def check_compute(compute: ComputeConfig, machine: Machine) -> Iterator[str]:
    """Yield what is wrong with arithmetic and memory."""
    counts = ("micro_batch_size", "logprob_chunk_size", "recompute_num_layers")
    yield from violations("compute", compute, dict.fromkeys(counts, POSITIVE))
    yield from _check_share_prompts(compute)
    yield from _check_transformer_engine(compute, machine)
    yield from _check_fp8(compute, machine)
    yield from _check_recompute(compute)


def _check_share_prompts(compute: ComputeConfig) -> Iterator[str]:
    """Yield why responses cannot share their prompt."""
    if not compute.share_prompts:
        return
    if compute.pack_sequences is False:
        yield (
            "compute.share_prompts = True with pack_sequences = False: a padded row holds its "
            "whole prompt; leave one of them out"
        )
    if compute.transformer_impl == "transformer_engine" and not compute.bf16:
        yield (
            "compute.share_prompts = True with transformer_impl = 'transformer_engine' and bf16 = "
            "False: it takes padded rows only in float32, each with its whole prompt; set "
            "compute.bf16 = true, or leave share_prompts out"
        )


def _check_transformer_engine(compute: ComputeConfig, machine: Machine) -> Iterator[str]:
    if compute.transformer_impl != "transformer_engine":
        return
    key = "compute.transformer_impl = 'transformer_engine'"
    if machine.transformer_engine is None:
        yield (
            f"{key}, but that package is not installed; install megatron-gad[te] on a machine with "
            "CUDA, or use 'local' (without fp8_format)"
        )
        return
    first, behind = TE_VERSIONS
    if not first <= Version(machine.transformer_engine) < behind:
        yield (
            f"{key}, but its version {machine.transformer_engine} does not go with megatron-core "
            f"0.16.1; install transformer-engine >= {first}, < {behind}, or use 'local'"
        )
    if machine.capability is None:
        yield (
            f"{key} needs a CUDA device, and there is none; run on a machine with one, "
            "or use 'local' (without fp8_format)"
        )
    if compute.pack_sequences and not compute.bf16:
        # Its kernels for packed rows are flash attention's and cuDNN's, which know 16 bits only.
        yield (
            f"compute.pack_sequences = True with {key.removeprefix('compute.')} and bf16 = False: "
            "no attention of Transformer Engine takes packed rows in float32; set compute.bf16 = "
            "true, or pack_sequences = false"
        )


def _check_fp8(compute: ComputeConfig, machine: Machine) -> Iterator[str]:
    if compute.fp8_format is None:
        if compute.fp8_recipe != "delayed":
            yield (
                f"compute.fp8_recipe = {compute.fp8_recipe!r} is about FP8, which is off; set "
                "compute.fp8_format = 'hybrid' (with transformer_impl = 'transformer_engine'), or "
                "leave it out"
            )
        return
    if compute.transformer_impl != "transformer_engine":
        yield (
            f"compute.fp8_format = {compute.fp8_format!r} needs Transformer Engine; "
            "set compute.transformer_impl = 'transformer_engine', or leave fp8_format out"
        )
    yield from _check_recipe(compute, machine)


def _check_recipe(compute: ComputeConfig, machine: Machine) -> Iterator[str]:
    """Yield why the GPU does not scale values like that."""
    needed, end, cards = RECIPE_CAPABILITY[compute.fp8_recipe]
    if machine.capability is None:
        return
    if machine.capability < needed:
        yield (
            f"compute.fp8_recipe = {compute.fp8_recipe!r} needs a GPU of compute capability "
            f"{needed[0]}.{needed[1]} ({cards}) or above, and this one has "
            f"{machine.capability[0]}.{machine.capability[1]}; {_other_recipe(machine.capability)}"
        )
    if machine.capability >= end:
        yield (
            f"compute.fp8_recipe = {compute.fp8_recipe!r} is not taken by Transformer Engine from "
            f"compute capability {end[0]}.{end[1]} on; {_other_recipe(machine.capability)}"
        )


def _other_recipe(capability: tuple[int, int]) -> str:
    fitting = [
        name for name, (needed, end, _) in RECIPE_CAPABILITY.items() if needed <= capability < end
    ]
    if not fitting:
        return "leave fp8_format out and use compute.bf16 = true"
    return f"use {fitting[-1]!r}, or leave fp8_format out"


def _check_recompute(compute: ComputeConfig) -> Iterator[str]:
    if compute.recompute_granularity == "full":
        return
    for name, default in (("recompute_method", "uniform"), ("recompute_num_layers", 1)):
        value = getattr(compute, name)
        if value != default:
            yield (
                f"compute.{name} = {value!r} is about full recompute; set "
                "compute.recompute_granularity = 'full', or leave it out"
            )


def describe_kernels(compute: ComputeConfig, machine: Machine) -> str:
    """Name the implementations that a run here takes; what is missing is never required."""
    if compute.transformer_impl == "transformer_engine":
        attention = _fused_attention(compute, machine)
        layers = f"attention by Transformer Engine ({attention}), norms by Transformer Engine"
    else:
        layers = "attention by torch's scaled_dot_product_attention, norms by torch"
    if machine.transformer_engine is not None:
        adam = "Transformer Engine's fused"
    elif machine.has_apex:
        adam = "Apex's fused"
    else:
        adam = "torch's"
    return f"{layers}, Adam: {adam}"


def _fused_attention(compute: ComputeConfig, machine: Machine) -> str:
    """Name the kernels that Transformer Engine chooses among."""
    if not compute.bf16:
        return "its own, the others know 16 bits only"
    if not machine.has_flash_attention:
        return "cuDNN or its own, no flash-attn"
    prefers_cudnn = machine.capability is not None and machine.capability >= (9, 0)
    return "cuDNN, else flash-attn" if prefers_cudnn else "flash-attn"
