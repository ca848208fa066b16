"""Which settings may change when a run goes on from a checkpoint, and what is said of a change.

Inputs and kinds are refused: what the models learn from, and which objective they follow. A run
that changed one would be neither the run that began nor another. Strengths and lengths are told:
they are what is adjusted after trouble. How results are computed and written is free: it changes
nothing beyond rounding.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from megatron_gad.checks.run_state import (
    chosen_iteration,
    damage_message,
    damage_of_run,
    earlier_whole,
    iteration_of,
)
from megatron_gad.config.output import CheckpointConfig
from megatron_gad.config.run import RunConfig
from megatron_gad.config.stage_section import stage_kinds
from megatron_gad.models.hub import with_model_names
from megatron_gad.training.checkpoint_files import (
    STATE,
    iteration_folder,
    marked_iteration,
)

Change = Literal["refused", "told", "free"]

TENSOR_AND_PIPELINE = "tensor_model_parallel_size pipeline_model_parallel_size"
# How a key may change: by section, where "" is the top level. Every key has one place. A stage's
# section says itself which of its keys are fixed; the others are told.
RULES: dict[Change, dict[str, str]] = {
    "refused": {
        "": "seed rewards",
        "data": "path weights prompt_column teacher_column reward_columns "
        "max_prompt_tokens max_response_tokens "
        "system_prompt chat_template_kwargs reasoning shuffle",
        "student": "path",
        "discriminator": "path score",
        "gad": "discriminator_loss advantage kl_estimator kl_in policy_loss aggregation "
        "mask_truncated length_correction negatives_draw",
        "rollout": "temperature",
    },
    "told": {
        "": "stages",  # those that have begun are compared when the checkpoint is loaded
        "compute": "bf16 transformer_impl fp8_format fp8_recipe",
        "data": "eval_path",
        "optimizer": "min_lr lr_decay_style lr_warmup_steps weight_decay adam_beta1 adam_beta2 "
        "clip_grad",
        "student": "lr",
        "discriminator": "lr head_std",
        "health": "pause_discriminator skip_student",
        "gad": "kl_coef clip_range clip_range_high dual_clip tis_cap negatives_pool "
        "negatives_share reset_optimizer",
        "rollout": "engine replay",
    },
    "free": {
        "parallel": TENSOR_AND_PIPELINE + " virtual_pipeline_model_parallel_size "
        "context_parallel_size expert_model_parallel_size expert_tensor_parallel_size "
        "sequence_parallel use_distributed_optimizer",
        "compute": "micro_batch_size max_tokens_per_microbatch recompute_granularity "
        "recompute_method recompute_num_layers "
        "pack_sequences share_prompts logprob_chunk_size",
        "checkpoint": "save load ckpt_step load_optim finetune override_config verify_checkpoint "
        "async_save save_interval keep_last export "
        "export_stages",
        "log": "log_interval samples_interval tensorboard wandb_project",
        "discriminator": TENSOR_AND_PIPELINE + " split_groups",
        "rollout": "max_total_tokens logprob_gap_bound record",
        "health": "ignore stop",
        "evaluation": "interval num_prompts select max_length_ratio instructions "
        "judge_url judge_model judge_extra_body",
        "sglang": "urls python num_servers tensor_parallel_size mem_fraction_static "
        "weight_transport update_weight_buffer_size verify_interval "
        "max_running_requests start_timeout_s request_timeout_s "
        "health_timeout_s server_args",
        "watchdog": "start_s phase_s max_skipped_steps",
        "schedule": "leaves device_memory_gib",
    },
}


@dataclass(frozen=True)
class Changes:
    """What differs from the run that wrote a checkpoint: one message for each setting."""

    refused: list[str]
    told: list[str]


def rule_of(key: str) -> Change:
    """Return how a key, such as "data.path", may change."""
    section, _, name = key.rpartition(".")
    fixed = {kind.name: kind.fixed for kind in stage_kinds()}
    if section in fixed:
        return "refused" if name in fixed[section] else "told"
    return next(rule for rule, keys in RULES.items() if name in keys.get(section, "").split())


def settings(config: RunConfig) -> dict[str, Any]:
    """Return every setting as {"section.key": plain value}, as a checkpoint holds them."""
    flat: dict[str, Any] = {}
    for name, value in asdict(with_model_names(config)).items():
        is_section = isinstance(value, dict)
        flat |= {f"{name}.{key}": v for key, v in value.items()} if is_section else {name: value}
    return json.loads(json.dumps(flat))


def check_override(config: RunConfig) -> Iterator[str]:
    """Yield what is wrong with the keys whose change is accepted."""
    known = settings(config)
    for key in config.checkpoint.override_config:
        if key not in known:
            yield (
                f"checkpoint.override_config has {key!r}, which is no key; "
                "name keys with their section, such as 'data.path'"
            )


def check_resume(config: RunConfig) -> Changes:
    """Compare a configuration with the checkpoint that its run would go on from, if there is one.

    Reads files only; of the checkpoint, its run state, which files it has and their sizes.
    """
    own, source = Path(config.checkpoint.save), config.checkpoint.load
    try:
        folder, going_back = _own_checkpoint(own)
        if folder is not None:
            changes = changes_since(config, json.loads((folder / STATE).read_text()), folder)
            return replace(changes, told=[*going_back, *changes.told])
        folder = _named(config.checkpoint) if source else None
        damage = damage_of_run(folder) if folder is not None else ""
        if folder is None:
            return Changes([], [])
        if damage:
            return Changes([damage_message(folder, damage)], [])
        if config.checkpoint.finetune:
            return Changes([], [])
        return changes_since(config, json.loads((folder / STATE).read_text()), folder)
    except ValueError as error:
        return Changes([str(error)], [])


def _own_checkpoint(run_folder: Path) -> tuple[Path | None, list[str]]:
    """Return the checkpoint that a run would go on from in place, and what it would go back over.

    Raises ValueError if there are some and none is whole.
    """
    folder = _marked(run_folder)
    damage = damage_of_run(folder) if folder is not None else ""
    if folder is None or not damage:
        return folder, []
    newest, before = iteration_of(folder), earlier_whole(run_folder, iteration_of(folder))
    if not before:
        raise ValueError(damage_message(folder, damage))
    told = (
        f"the checkpoint {folder} {damage}; it is moved aside, and the run goes back to iteration "
        f"{before[-1]}: {newest - before[-1]} step(s) are taken again"
    )
    return iteration_folder(run_folder, before[-1]), [told]


def changes_since(config: RunConfig, state: Mapping[str, Any], folder: Path) -> Changes:
    """Compare a configuration with the one of a checkpoint.

    state: the checkpoint's run state. folder: the checkpoint, for the messages.
    """
    then, now = state.get("settings", {}), settings(config)
    refused, told = [], []
    for key in now:
        rule = rule_of(key)
        if key not in then or then[key] == now[key] or rule == "free":
            continue
        is_accepted = key in config.checkpoint.override_config
        if rule == "told" or is_accepted or not _has_begun(key, state):
            told.append(f"{key} = {now[key]!r}, was {then[key]!r} in {folder}")
            continue
        refused.append(
            f"{key} = {now[key]!r}, but the checkpoint {folder} was made with {then[key]!r}; "
            "resume with the same value, begin a run of its own with another --save, or accept "
            f"the change with --override-config {key}"
        )
    return Changes(refused, told)


def _has_begun(key: str, state: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint's run used a setting in what it would go on with.

    A setting of a stage that is over, or still to come, may change.
    """
    progress, stages = state["progress"], state["stages"]
    name = stages[progress["stage_index"]] if progress["step_in_stage"] else ""
    stage = next((kind for kind in stage_kinds() if kind.name == name), None)
    section = key.rpartition(".")[0]
    if section == "discriminator" or key == "gad.discriminator_loss":
        return "discriminator" in state["schedule_steps"]
    if section == "rollout":
        return stage is not None and stage.uses_engine
    if key == "rewards":
        return stage is not None and (stage.uses_gad or stage.ranks_by_discriminator)
    if section == "gad":
        return stage is not None and stage.uses_gad
    return section in ("", "data", "student") or (stage is not None and section == stage.name)


def _named(checkpoint: CheckpointConfig) -> Path | None:
    """Return the checkpoint of checkpoint.load that a run would go on from.

    Raises ValueError if checkpoint.ckpt_step is none of them.
    """
    source = Path(checkpoint.load)
    if checkpoint.ckpt_step is None:
        return _marked(source)
    return iteration_folder(source, chosen_iteration(source, checkpoint.ckpt_step))


def _marked(run_folder: Path) -> Path | None:
    """Return the checkpoint that a marker names, also one that a crash left under its other name.

    Raises ValueError if it names none.
    """
    iteration = marked_iteration(run_folder)
    if iteration is None:
        return None
    folder = iteration_folder(run_folder, iteration)
    replaced = folder.with_name(folder.name + ".old")
    return replaced if replaced.is_dir() and not folder.is_dir() else folder
