"""A run's configuration as the planner's request: what a step of each stage computes."""

from dataclasses import replace
from pathlib import Path

from megatron_gad.config import RunConfig
from megatron_gad.data.dataset import HUB, DataConfig
from megatron_gad.data.rows import read_file_rows
from megatron_gad.models.layout_rules import data_parallel_size
from megatron_gad.planning.layout import Layout
from megatron_gad.planning.work import Lengths, StageWork
from megatron_gad.stage_config import AdversarialConfig, SeqkdConfig, WarmupConfig


def stage_works(config: RunConfig) -> tuple[StageWork, ...]:
    """Return a typical step of each stage of a run, in their order.

    Typical: the first steps, in which only the discriminator learns, are left out, as is a warm-up
    that ends early.
    """
    return tuple(_stage_work(config, name) for name in config.stages)


def configured_layout(config: RunConfig, num_gpus: int) -> Layout:
    """Return the layout that a configuration has on this many GPUs."""
    parallel = config.parallel
    return Layout(
        tensor=parallel.tensor_model_parallel_size,
        pipeline=parallel.pipeline_model_parallel_size,
        data=data_parallel_size(parallel, num_gpus),
        sequence_parallel=parallel.sequence_parallel,
        distributed_optimizer=parallel.use_distributed_optimizer,
        recompute=config.compute.recompute_granularity,
    )


def lengths_of(data: DataConfig, mean_prompt: int, mean_response: int) -> Lengths:
    """Return the caps of a configuration with assumed means, which its caps bound.

    Raises:
        ValueError: a length is below 1.
    """
    return Lengths(
        prompt=min(mean_prompt, data.max_prompt_tokens),
        response=min(mean_response, data.max_response_tokens),
        max_prompt=data.max_prompt_tokens,
        max_response=data.max_response_tokens,
    )


def count_rows(data: DataConfig) -> int | None:
    """Return the rows of a data set in files; None where it is not there, or on the Hub."""
    if not data.path or data.path.startswith(HUB) or not Path(data.path).exists():
        return None
    columns = (data.prompt_column, data.teacher_column)
    return sum(not row.problem for row in read_file_rows(data.path, columns))


def _stage_work(config: RunConfig, name: str) -> StageWork:
    stage: SeqkdConfig | WarmupConfig | AdversarialConfig = getattr(config, name)
    if isinstance(stage, SeqkdConfig):
        work = _seqkd_work(stage)
    elif isinstance(stage, WarmupConfig):
        work = _warmup_work(stage, config.discriminator.split_groups)
    else:
        work = _adversarial_work(stage, config)
    return replace(work, steps=stage.steps, epochs=stage.epochs)


def _seqkd_work(stage: SeqkdConfig) -> StageWork:
    return StageWork(
        kind="seqkd",
        num_prompts=stage.batch_size,
        group_size=0,
        num_samples=0,
        student_forwards=0,
        student_trained=stage.batch_size,
        discriminator_forwards=0,
        discriminator_trained=0,
    )


def _warmup_work(stage: WarmupConfig, split_groups: bool) -> StageWork:
    rows = stage.prompts_per_step * stage.group_size
    pairs = rows + stage.prompts_per_step
    return StageWork(
        kind="warmup",
        num_prompts=stage.prompts_per_step,
        group_size=stage.group_size,
        num_samples=rows,
        student_forwards=0,
        student_trained=stage.prompts_per_step if stage.train_student else 0,
        # Split groups are scored first, by a pass of its own.
        discriminator_forwards=pairs if split_groups else 0,
        discriminator_trained=pairs,
    )


def _adversarial_work(stage: AdversarialConfig, config: RunConfig) -> StageWork:
    rows = stage.prompts_per_step * stage.group_size
    pairs = rows + stage.prompts_per_step
    learns = 0.0 if stage.freeze_discriminator else 1 / stage.discriminator_interval
    again = pairs if config.discriminator.split_groups else 0
    num_extra = 0 if stage.freeze_discriminator else stage.extra_discriminator_steps
    extra = num_extra * stage.extra_prompts
    gad = config.gad
    # The reference's pass; a KL in the reward needs the student's own before its update too.
    num_forwards = (1 + (gad.kl_in == "reward")) if gad.kl_coef > 0 else 0
    return StageWork(
        kind="adversarial",
        num_prompts=stage.prompts_per_step,
        group_size=stage.group_size,
        num_samples=rows + extra,
        student_forwards=rows * num_forwards,
        student_trained=rows * stage.student_updates,
        discriminator_forwards=pairs * (1 - learns) + again * learns,
        discriminator_trained=pairs * learns + 2 * extra,
    )
