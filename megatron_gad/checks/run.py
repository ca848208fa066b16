"""All checks of a run's configuration."""

from collections.abc import Iterator

from megatron_gad.checks.compute import check_compute
from megatron_gad.checks.evaluation import check_evaluation
from megatron_gad.checks.found import Found, find
from megatron_gad.checks.layout import (
    check_experts,
    check_layers,
    check_own_layout,
    check_parallel,
)
from megatron_gad.checks.models import check_models
from megatron_gad.checks.rewards import check_rewards
from megatron_gad.checks.secrets import check_secrets
from megatron_gad.checks.sections import (
    check_algorithm,
    check_data,
    check_embedded,
    check_exports,
    check_optimizer,
    check_replay,
    check_rollout,
    check_run_directory,
    check_schedule,
    check_token_bound,
    check_watchdog,
)
from megatron_gad.checks.sglang import check_deadlines, check_served_student, check_sglang
from megatron_gad.checks.stages import (
    DataSizes,
    check_overlap,
    check_ranking,
    check_stage,
    check_stage_names,
)
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.config.run import RunConfig
from megatron_gad.config.stage_section import stage_kinds
from megatron_gad.models.layout_rules import data_parallel_size, ranks_beside_the_first

# Of student and discriminator.
Layouts = tuple[ParallelConfig, ParallelConfig]


def check_config(config: RunConfig, world_size: int) -> list[str]:
    """Return every violation, each with key, value, what is allowed and the remedy.

    Touches files only: no process group, no device.

    Args:
        config: what the user wrote.
        world_size: ranks that the run will have.
    """
    return check_found(config, find(config, world_size))


def check_found(config: RunConfig, found: Found) -> list[str]:
    """Return what ``check_config`` does, of what was looked up before."""
    world_size = found.world_size
    own = config.discriminator_layout(found.models.discriminator.mixture is not None)
    layouts = (config.parallel, own)
    return [
        *check_stage_names(config.stages),
        *_of_computing(config, found, layouts),
        *_of_models(config, found, layouts),
        *_of_files(config),
        *check_secrets(config),
        *check_algorithm(config.gad),
        *check_rewards(config.rewards),
        *check_rollout(config.rollout),
        *check_watchdog(config.watchdog),
        *check_schedule(config.schedule),
        *check_evaluation(config, max(data_parallel_size(x, world_size) for x in layouts)),
        *_of_engine(config, found),
        *_of_stages(config, layouts, world_size),
    ]


def _of_computing(config: RunConfig, found: Found, layouts: Layouts) -> Iterator[str]:
    compute = config.compute
    yield from check_parallel(config.parallel, compute, found.world_size)
    yield from check_own_layout(config.discriminator, config.parallel, compute, found.world_size)
    yield from check_compute(compute, found.machine)
    yield from check_token_bound(compute, config.data)
    yield from check_layers(found.models, layouts, compute)


def _of_models(config: RunConfig, found: Found, layouts: Layouts) -> Iterator[str]:
    yield from check_optimizer(config.optimizer, config.student, config.discriminator)
    yield from check_models(found.models, layouts, config.data)
    yield from check_experts(found.models, layouts, found.world_size)


def _of_files(config: RunConfig) -> Iterator[str]:
    yield from check_run_directory(config.checkpoint, config.log)
    if config.checkpoint.save:
        yield from check_exports(config.checkpoint, config.stages)
    yield from check_data(config.data)


def _of_engine(config: RunConfig, found: Found) -> Iterator[str]:
    if config.rollout.engine == "embedded":
        yield from check_embedded(config.rollout, config.data)
    if config.rollout.engine == "replay":
        yield from check_replay(config.rollout)
    if config.rollout.engine == "sglang":
        size = data_parallel_size(config.parallel, found.world_size)
        num_gpus = ranks_beside_the_first(config.parallel, found.world_size, found.host_size)
        yield from check_sglang(config.sglang, size, num_gpus)
        yield from check_deadlines(config.sglang, config.watchdog)
        yield from check_served_student(found.models.student)


def _of_stages(config: RunConfig, layouts: Layouts, world_size: int) -> Iterator[str]:
    sizes = DataSizes(*(data_parallel_size(layout, world_size) for layout in layouts))
    in_order = [kind.name for kind in stage_kinds() if kind.name in config.stages]
    yield from check_ranking(config.stage_sections, config.checkpoint.load, config.rewards)
    for section in (getattr(config, name) for name in in_order):
        yield from check_stage(section, config.data, sizes)
        if section.samples_ahead:
            yield from check_overlap(section.name, config.gad, config.rollout)
