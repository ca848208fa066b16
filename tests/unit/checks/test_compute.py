"""What arithmetic and memory need of a machine, said with key, value, allowed and remedy."""

from dataclasses import replace
from typing import Any

import pytest

from megatron_gad.checks.compute import Machine, check_compute, describe_kernels
from megatron_gad.config.compute import ComputeConfig

NOTHING = Machine()
A100, ADA = Machine((8, 0), "2.11.0"), Machine((8, 9), "2.11.0")
H100, B200 = Machine((9, 0), "2.11.0"), Machine((10, 0), "2.11.0")
RTX = Machine((12, 0), "2.11.0")


def problems(machine: Machine, **compute: Any) -> list[str]:
    return [*check_compute(ComputeConfig(**compute), machine)]


def fp8(recipe: str, **more: Any) -> dict[str, Any]:
    impl = {"transformer_impl": "transformer_engine", "bf16": True}
    return {**impl, "fp8_format": "hybrid", "fp8_recipe": recipe, **more}


@pytest.mark.parametrize("machine", [NOTHING, A100, ADA, H100, B200])
def test_the_defaults_bf16_and_full_recompute_run_anywhere(machine: Machine) -> None:
    assert problems(machine) == []
    full = {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 2}
    assert problems(machine, bf16=True, **full) == []


@pytest.mark.parametrize(
    ("recipe", "fitting"),
    [
        ("delayed", [ADA, H100, B200, RTX]),
        ("tensorwise", [ADA, H100, B200, RTX]),
        ("blockwise", [H100, B200, RTX]),
        ("mxfp8", [B200]),
    ],
)
def test_a_recipe_is_taken_by_the_cards_that_have_it(recipe: str, fitting: list[Machine]) -> None:
    for machine in (A100, ADA, H100, B200, RTX):
        for options in (fp8(recipe), fp8(recipe, share_prompts=True)):
            assert (problems(machine, **options) == []) == (machine in fitting)


CASES: list[tuple[Machine, dict[str, Any], str]] = [
    (
        NOTHING,
        fp8("delayed"),
        "compute.transformer_impl = 'transformer_engine', but that package is not installed; "
        "install megatron-gad[te] on a machine with CUDA, or use 'local' (without fp8_format)",
    ),
    (
        Machine((9, 0), "2.13.0"),
        fp8("delayed"),
        "compute.transformer_impl = 'transformer_engine', but its version 2.13.0 does not go with "
        "megatron-core 0.16.1; install transformer-engine >= 2.9, < 2.12, or use 'local'",
    ),
    (
        Machine(None, "2.11.0"),
        fp8("delayed"),
        "compute.transformer_impl = 'transformer_engine' needs a CUDA device, and there is none; "
        "run on a machine with one, or use 'local' (without fp8_format)",
    ),
    (
        H100,
        {"transformer_impl": "transformer_engine", "pack_sequences": True},
        "compute.pack_sequences = True with transformer_impl = 'transformer_engine' and bf16 = "
        "False: no attention of Transformer Engine takes packed rows in float32; set compute.bf16 "
        "= true, or pack_sequences = false",
    ),
    (
        H100,
        {"transformer_impl": "transformer_engine", "share_prompts": True},
        "compute.share_prompts = True with transformer_impl = 'transformer_engine' and bf16 = "
        "False: it takes padded rows only in float32, each with its whole prompt; set "
        "compute.bf16 = true, or leave share_prompts out",
    ),
    (
        H100,
        {"pack_sequences": False, "share_prompts": True},
        "compute.share_prompts = True with pack_sequences = False: a padded row holds its whole "
        "prompt; leave one of them out",
    ),
    (
        A100,
        fp8("tensorwise"),
        "compute.fp8_recipe = 'tensorwise' needs a GPU of compute capability 8.9 (Ada or Hopper) "
        "or above, and this one has 8.0; leave fp8_format out and use compute.bf16 = true",
    ),
    (
        H100,
        fp8("mxfp8"),
        "compute.fp8_recipe = 'mxfp8' needs a GPU of compute capability 10.0 (Blackwell) or above, "
        "and this one has 9.0; use 'blockwise', or leave fp8_format out",
    ),
    (
        RTX,
        fp8("mxfp8"),
        "compute.fp8_recipe = 'mxfp8' is not taken by Transformer Engine from compute capability "
        "12.0 on; use 'blockwise', or leave fp8_format out",
    ),
    (
        H100,
        {"fp8_recipe": "blockwise"},
        "compute.fp8_recipe = 'blockwise' is about FP8, which is off; set compute.fp8_format = "
        "'hybrid' (with transformer_impl = 'transformer_engine'), or leave it out",
    ),
    (
        NOTHING,
        {"recompute_granularity": "selective", "recompute_num_layers": 4},
        "compute.recompute_num_layers = 4 is about full recompute; set "
        "compute.recompute_granularity = 'full', or leave it out",
    ),
]


@pytest.mark.parametrize(("machine", "compute", "message"), CASES)
def test_what_is_missing_is_said_with_the_remedy(
    machine: Machine, compute: dict[str, Any], message: str
) -> None:
    assert problems(machine, **compute) == [message]


def test_the_kernels_of_a_run_are_named() -> None:
    local = "attention by torch's scaled_dot_product_attention, norms by torch, Adam: "
    assert describe_kernels(ComputeConfig(), NOTHING) == local + "torch's"
    assert describe_kernels(ComputeConfig(), Machine((8, 0), has_apex=True)).endswith(
        "Apex's fused"
    )
    te = ComputeConfig(transformer_impl="transformer_engine", bf16=True)
    cards = ((8, 0), "flash-attn"), ((9, 0), "cuDNN, else flash-attn")
    for capability, kernels in cards:
        with_flash = Machine(capability, "2.11.0", has_flash_attention=True)
        assert f"Transformer Engine ({kernels})" in describe_kernels(te, with_flash)
        assert "(its own, " in describe_kernels(replace(te, bf16=False), with_flash)
    assert "no flash-attn" in describe_kernels(te, H100)
