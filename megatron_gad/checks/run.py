"""All checks of a run's configuration."""

from megatron_gad.checks.compute import check_compute, this_machine
from megatron_gad.checks.experts import check_experts, experts_in
from megatron_gad.checks.layers import check_layers
from megatron_gad.checks.layout import check_own_layout, check_parallel
from megatron_gad.checks.models import check_models
from megatron_gad.checks.sections import (
    check_algorithm,
    check_data,
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
    check_adversarial,
    check_offload,
    check_overlap,
    check_seqkd,
    check_stage_names,
    check_warmup,
)
from megatron_gad.config.layout import HOST_GPUS
from megatron_gad.config.run import RunConfig
from megatron_gad.environment import is_started_by_torchrun, local_world_size
from megatron_gad.models.layout_rules import data_parallel_size, ranks_beside_the_first


def check_config(config: RunConfig, world_size: int) -> list[str]:
    """Return every violation, each with key, value, what is allowed and the remedy.

    Touches files only: no process group, no device.

    Args:
        config: what the user wrote.
        world_size: ranks that the run will have.
    """
    model = config.discriminator.path or config.student.path
    layouts = (config.parallel, config.discriminator_layout(experts_in(model) is not None))
    sizes = DataSizes(*(data_parallel_size(layout, world_size) for layout in layouts))
    has_eval = bool(config.data.eval_path)
    problems = [
        *check_stage_names(config.stages),
        *check_parallel(config.parallel, config.compute, world_size),
        *check_compute(config.compute, config.parallel, this_machine()),
        *check_offload(config.stages, config.compute),
        *check_token_bound(config.compute, config.data),
        *check_run_directory(config.checkpoint, config.log),
        *check_data(config.data),
        *check_optimizer("student", config.student),
        *check_optimizer("discriminator", config.discriminator),
        *check_own_layout(config.discriminator, config.parallel, config.compute, world_size),
        *check_models(config.student.path, config.discriminator.path, layouts, config.data),
        *check_layers(config.student.path, config.discriminator.path, layouts, config.compute),
        *check_experts(config.student.path, config.discriminator, config.parallel, world_size),
        *check_algorithm(config.gad),
        *check_rollout(config.rollout),
        *check_watchdog(config.watchdog, config.parallel, world_size),
        *check_schedule(config.schedule),
    ]
    if config.rollout.engine == "replay":
        problems += check_replay(config.rollout)
    if config.rollout.engine == "sglang":
        num_gpus = ranks_beside_the_first(config.parallel, world_size, _host_size())
        problems += check_sglang(config.sglang, sizes.student, num_gpus)
        problems += check_deadlines(config.sglang, config.watchdog)
        problems += check_served_student(config.student.path)
    if "seqkd" in config.stages:
        problems += check_seqkd(config.seqkd, has_eval, sizes.student)
    if "warmup" in config.stages:
        problems += check_warmup(config.warmup, sizes)
    if "adversarial" in config.stages:
        problems += check_adversarial(config.adversarial, sizes)
        problems += check_overlap(config.adversarial, config.gad, config.rollout)
    return problems


def _host_size() -> int:
    """Return the ranks of a node: those that torchrun started here, or as many as is usual."""
    return local_world_size() if is_started_by_torchrun() else HOST_GPUS
