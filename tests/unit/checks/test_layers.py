"""Arithmetic that a model's layers do not take is refused, per model."""

from dataclasses import replace
from typing import Any

import pytest

from megatron_gad.checks.found import read_models
from megatron_gad.checks.layout import check_layers
from megatron_gad.checks.run import check_config
from megatron_gad.config.run import RunConfig
from tests.tiny import make_hf_folder
from tests.tiny_run import make_run


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Return a configuration without a mistake; 2 layers, and 6 of a discriminator of its own."""
    folder = tmp_path_factory.mktemp("run")
    run = make_run(folder)
    own = make_hf_folder(
        folder / "scorer", vocab_size=384, max_position_embeddings=256, num_hidden_layers=6
    )
    return replace(run, discriminator=replace(run.discriminator, path=str(own)))


def computed(config: RunConfig, **compute: Any) -> RunConfig:
    """Return the configuration with other options of section compute."""
    return replace(config, compute=replace(config.compute, **compute))


def uniform(config: RunConfig, unit: int) -> RunConfig:
    """Return the configuration with full recompute in units of layers."""
    return computed(config, recompute_granularity="full", recompute_num_layers=unit)


def staged(config: RunConfig, student: int, discriminator: int) -> RunConfig:
    """Return the configuration with these pipelines."""
    parallel = replace(config.parallel, pipeline_model_parallel_size=student)
    own = replace(config.discriminator, pipeline_model_parallel_size=discriminator)
    return replace(config, parallel=parallel, discriminator=own)


def test_a_unit_of_recompute_has_to_divide_the_layers_of_each_models_stages(
    good: RunConfig,
) -> None:
    assert check_config(uniform(good, 1), world_size=1) == []
    assert check_config(uniform(good, 2), world_size=1) == []
    of_student = (
        "compute.recompute_num_layers = {} does not divide the {} layers of a pipeline stage of "
        f"student.path = {good.student.path!r}; use a divisor of it, or compute.recompute_method = "
        "'block'"
    )
    of_discriminator = of_student.replace("student.path", "discriminator.path").replace(
        good.student.path, good.discriminator.path
    )
    assert check_config(uniform(good, 3), world_size=1) == [of_student.format(3, 2)]
    assert check_config(uniform(good, 4), world_size=1) == [
        of_student.format(4, 2),
        of_discriminator.format(4, 6),
    ]
    # 2 layers a stage of the student, 3 of the discriminator.
    assert check_config(uniform(staged(good, 1, 2), 2), world_size=2) == [
        of_discriminator.format(2, 3)
    ]


def test_layers_one_by_one_may_be_any_number(good: RunConfig) -> None:
    by_block = replace(uniform(good, 5).compute, recompute_method="block")
    assert check_config(replace(good, compute=by_block), world_size=1) == []


def test_a_discriminator_from_the_student_is_held_to_its_own_pipeline(good: RunConfig) -> None:
    config = replace(good, discriminator=replace(good.discriminator, path=""))
    assert check_config(uniform(config, 2), world_size=1) == []
    assert check_config(uniform(staged(config, 1, 2), 2), world_size=2) == [
        "compute.recompute_num_layers = 2 does not divide the 1 layers of a pipeline stage of "
        f"student.path = {good.student.path!r}, from which the discriminator starts; use a divisor "
        "of it, or compute.recompute_method = 'block'"
    ]


def test_whole_blocks_of_hidden_states_are_gathered(good: RunConfig) -> None:
    def messages(recipe: str, **layout: int | bool) -> list[str]:
        parallel = replace(good.parallel, **layout)
        fp8 = {"transformer_impl": "transformer_engine", "fp8_format": "hybrid"}
        compute = replace(good.compute, bf16=True, **fp8, fp8_recipe=recipe)
        found = check_layers(read_models(good.student.path, ""), (parallel, parallel), compute)
        return [message for message in found if "recipe" in message]

    sharded = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    assert messages("tensorwise", **sharded) == messages("blockwise") == []
    assert messages("blockwise", **sharded) == [
        "compute.fp8_recipe = 'blockwise' with sequence_parallel = True gathers whole blocks, and "
        f"their 128 values do not divide hidden_size = 32 of student.path = {good.student.path!r}; "
        "use 'tensorwise', or leave sequence_parallel out"
    ]
