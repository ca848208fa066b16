"""A layout that cannot be is refused with the arithmetic, before anything starts."""

from dataclasses import replace
from pathlib import Path

import pytest
from megatron.core.parallel_state import RankGenerator

from megatron_gad.checks.layout import check_own_layout
from megatron_gad.checks.run import check_config
from megatron_gad.config.run import RunConfig
from megatron_gad.models.layout_rules import (
    data_parallel_size,
    has_whole_copies_together,
    ranks_beside_the_first,
)
from tests.tiny_run import make_run

STARTED = "a dry run plans for other ranks with --world-size"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Return a configuration without a mistake; 4 heads, 2 key-value heads and 2 layers."""
    return make_run(tmp_path_factory.mktemp("run"))


def laid_out(config: RunConfig, **sizes: int | bool) -> RunConfig:
    """Return the configuration with another layout."""
    return replace(config, parallel=replace(config.parallel, **sizes))


TP2 = {"tensor_model_parallel_size": 2}
TP4 = {"tensor_model_parallel_size": 4}
TP8 = {"tensor_model_parallel_size": 8}
PP2 = {"pipeline_model_parallel_size": 2}
CP2 = {"context_parallel_size": 2}


@pytest.mark.parametrize(
    "sizes",
    [TP2, PP2, CP2, TP2 | CP2, PP2 | CP2, TP2 | PP2, PP2 | {"use_distributed_optimizer": True}],
)
def test_what_can_be_is_not_refused(good: RunConfig, sizes: dict[str, int]) -> None:
    assert check_config(laid_out(good, **sizes), world_size=4) == []


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (
            TP2 | PP2 | CP2,
            "parallel.tensor_model_parallel_size 2 x pipeline_model_parallel_size 2 x "
            "context_parallel_size 2 = 8 does not divide the 4 ranks of this run; start a multiple "
            "of 8 ranks (torchrun --nproc-per-node 8), or make the sizes smaller; " + STARTED,
        ),
        (
            {"context_parallel_size": 3},
            "parallel.context_parallel_size = 3 does not divide the 4 ranks of this run; start a "
            "multiple of 3 ranks (torchrun --nproc-per-node 3), or make the sizes smaller; "
            + STARTED,
        ),
        (
            {"context_parallel_size": 0},
            "parallel.context_parallel_size = 0 is not allowed; give a value above 0",
        ),
        (
            {"virtual_pipeline_model_parallel_size": 2},
            "parallel.virtual_pipeline_model_parallel_size = 2 interleaves the chunks of several "
            "pipeline ranks, but pipeline_model_parallel_size = 1; make it 2 or more, or leave "
            "virtual_pipeline_model_parallel_size out",
        ),
        (
            PP2 | {"virtual_pipeline_model_parallel_size": 1},
            "parallel.virtual_pipeline_model_parallel_size = 1 is not allowed: it is the chunks of "
            "layers that a pipeline rank holds; make it 2 or more, or leave it out",
        ),
        (
            {"sequence_parallel": True},
            "parallel.sequence_parallel = True shards between tensor-parallel ranks, but "
            "tensor_model_parallel_size = 1; make it 2 or more, or leave sequence_parallel out",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_arithmetic(
    good: RunConfig, sizes: dict[str, int], expected: str
) -> None:
    assert expected in check_config(laid_out(good, **sizes), world_size=4)


def test_layers_have_to_be_shared_out_among_all_chunks(good: RunConfig) -> None:
    bad = laid_out(good, **PP2, virtual_pipeline_model_parallel_size=2)
    assert check_config(bad, world_size=2) == [
        "parallel.pipeline_model_parallel_size 2 x virtual_pipeline_model_parallel_size 2 = 4 does "
        f"not divide num_hidden_layers = 2 of student.path = {good.student.path!r}; use one of "
        "1, 2"
    ]


def test_context_parallel_rows_are_padded_ones(good: RunConfig) -> None:
    packed = replace(good, compute=replace(good.compute, pack_sequences=True))
    assert check_config(laid_out(packed, **CP2), world_size=2) == [
        "compute.pack_sequences = True with parallel.context_parallel_size = 2: context-parallel "
        "ranks share the tokens of padded rows only; leave one of them out"
    ]


def test_context_parallel_rows_have_their_own_prompts(good: RunConfig) -> None:
    shared = replace(good, compute=replace(good.compute, share_prompts=True))
    assert check_config(laid_out(shared, **CP2), world_size=2) == [
        "compute.share_prompts = True with parallel.context_parallel_size = 2: context-parallel "
        "ranks take equal chunks of whole rows; leave one of them out"
    ]


def test_rows_that_ranks_share_are_no_float32_ones_of_transformer_engine(good: RunConfig) -> None:
    def messages(**compute: bool) -> list[str]:
        impl = replace(good.compute, transformer_impl="transformer_engine", **compute)
        found = check_config(replace(laid_out(good, **CP2), compute=impl), world_size=4)
        return [message for message in found if "between ranks" in message]

    assert messages(bf16=True) == []
    assert messages() == [
        "compute.transformer_impl = 'transformer_engine' with bf16 = False and "
        "parallel.context_parallel_size = 2: no attention of Transformer Engine shares float32 "
        "rows between ranks; set compute.bf16 = true, or use 'local'"
    ]


def test_context_parallel_ranks_are_no_data_ranks(good: RunConfig, tmp_path: Path) -> None:
    warmup = replace(good.warmup, prompts_per_step=3)
    config = replace(laid_out(good, **CP2), stages=("warmup",), warmup=warmup)
    assert check_config(config, world_size=6) == []
    assert "has to be a positive multiple of the 2 data" in check_config(config, world_size=4)[0]


def with_own(config: RunConfig, **sizes: int) -> RunConfig:
    """Return the configuration at TP2 with another layout of the discriminator."""
    own = replace(config.discriminator, **sizes)
    return replace(laid_out(config, **TP2, sequence_parallel=True), discriminator=own)


def test_what_the_discriminator_does_not_say_is_as_the_students(good: RunConfig) -> None:
    student = laid_out(good, **TP2, sequence_parallel=True)
    assert student.discriminator_layout(has_experts=False) == student.parallel
    alone = with_own(good, tensor_model_parallel_size=1).discriminator_layout(has_experts=False)
    assert (alone.tensor_model_parallel_size, alone.sequence_parallel) == (1, False)
    interleaved = {"virtual_pipeline_model_parallel_size": 2}
    deep = replace(good.parallel, pipeline_model_parallel_size=4, **interleaved)
    shallow = replace(good.discriminator, pipeline_model_parallel_size=2).beside(deep)
    assert shallow == replace(good.parallel, pipeline_model_parallel_size=2)
    wide = replace(good.discriminator, tensor_model_parallel_size=2).beside(deep)
    assert wide == replace(deep, tensor_model_parallel_size=2, sequence_parallel=True)
    plain = laid_out(good, **TP2, **CP2).parallel
    longer = replace(good.discriminator, pipeline_model_parallel_size=2).beside(plain)
    assert longer == replace(plain, pipeline_model_parallel_size=2)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"tensor_model_parallel_size": 1}, []),
        (
            {"pipeline_model_parallel_size": 4},
            [
                "discriminator.tensor_model_parallel_size 2 x pipeline_model_parallel_size 4 = 8 "
                "does not divide the 4 ranks of this run; start a multiple of 8 ranks (torchrun "
                "--nproc-per-node 8), or make the sizes smaller; " + STARTED,
                "discriminator.pipeline_model_parallel_size = 4 does not divide num_hidden_layers "
                "= 2 of student.path = '{path}', from which the discriminator starts; use one of "
                "1, 2",
            ],
        ),
        (
            {"tensor_model_parallel_size": 0},
            ["discriminator.tensor_model_parallel_size = 0 is not allowed; give a value above 0"],
        ),
    ],
)
def test_a_layout_of_the_discriminators_own_is_checked_under_its_name(
    good: RunConfig, sizes: dict[str, int], expected: list[str]
) -> None:
    messages = [message.replace("{path}", good.student.path) for message in expected]
    assert check_config(with_own(good, **sizes), world_size=4) == messages


def test_prompts_of_a_step_are_shared_by_the_data_ranks_of_both_models(good: RunConfig) -> None:
    config = replace(with_own(good, tensor_model_parallel_size=1), stages=("warmup",))
    few = replace(config, warmup=replace(config.warmup, prompts_per_step=6))
    assert check_config(few, world_size=4) == [
        "warmup.prompts_per_step = 6 has to be a positive multiple of the 2 data-parallel rank(s) "
        "of the student and of the 4 of the discriminator; the next that is one is 8"
    ]


def test_scales_of_earlier_steps_need_the_same_stages_in_both_models(good: RunConfig) -> None:
    def messages(config: RunConfig, recipe: str) -> list[str]:
        fp8 = {"transformer_impl": "transformer_engine", "fp8_format": "hybrid"}
        compute = replace(config.compute, bf16=True, **fp8, fp8_recipe=recipe)
        return [*check_own_layout(config.discriminator, config.parallel, compute, world_size=4)]

    one_stage, both = with_own(good), laid_out(with_own(good, **PP2), **PP2)
    for recipe in ("delayed", "tensorwise"):
        assert messages(one_stage, recipe) == messages(both, recipe) == []
    longer = with_own(good, **PP2)
    assert messages(longer, "tensorwise") == []
    assert messages(longer, "delayed") == [
        "discriminator.pipeline_model_parallel_size = 2 beside 1 of the student does not go with "
        "compute.fp8_recipe = 'delayed', where the ranks of a stage share their scales: each would "
        "wait for another; make the two equal, or use 'tensorwise', 'blockwise' or 'mxfp8'"
    ]


@pytest.mark.parametrize(
    ("sizes", "num_ranks", "expected"),
    [
        ({}, 8, 1),
        # Two stages of four ranks, beside each other, on one of two nodes.
        (TP4 | PP2, 16, 8),
        (TP8 | PP2, 64, 8),
        (TP2 | PP2, 4, 4),
        # Megatron puts the stages of context-parallel ranks apart: 0 to 3 and 8 to 11.
        (TP2 | PP2 | CP2, 16, 4),
        (TP2 | PP2 | CP2, 8, 8),
        # Experts are cut as all layers, or otherwise.
        (TP2 | PP2 | {"expert_model_parallel_size": 2, "expert_tensor_parallel_size": 1}, 16, 4),
        (TP2 | PP2 | {"expert_model_parallel_size": 2}, 16, 2),
    ],
)
def test_the_ranks_of_a_copy_on_one_host_are_those_of_megatrons_order(
    good: RunConfig, sizes: dict[str, int], num_ranks: int, expected: int
) -> None:
    layout = laid_out(good, **sizes).parallel
    assert ranks_beside_the_first(layout, num_ranks, host_size=8) == expected
    generator = RankGenerator(
        tp=layout.tensor_model_parallel_size,
        cp=layout.context_parallel_size,
        ep=1,
        pp=layout.pipeline_model_parallel_size,
        dp=data_parallel_size(layout, num_ranks),
        order="tp-cp-ep-pp-dp" if has_whole_copies_together(layout) else "tp-cp-ep-dp-pp",
    )
    (first, *_) = generator.get_ranks("tp-cp-pp")
    assert sum(rank < 8 for rank in first) == expected
