"""Checks of the sections of a configuration, before any process group or device is touched.

Every check returns messages, one per violation: the key, its value, what is allowed, the remedy.
The stages' sections are checked in ``stages``, the models' files in ``models``.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from megatron_gad.checks.values import (
    BETA,
    DEADLINE_OR_NONE,
    GIBIBYTES,
    NOT_NEGATIVE,
    POSITIVE,
    violations,
)
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.data import DataConfig
from megatron_gad.config.gad import GadConfig
from megatron_gad.config.models import DiscriminatorConfig, OptimizerConfig, StudentConfig
from megatron_gad.config.output import CheckpointConfig, LogConfig
from megatron_gad.config.rollout import EMBEDDED_BLOCK, RolloutConfig
from megatron_gad.config.run_control import ScheduleConfig, WatchdogConfig


def check_token_bound(compute: ComputeConfig, data: DataConfig) -> Iterator[str]:
    """Yield a message where a microbatch does not hold the longest row that the data may have."""
    longest = data.max_prompt_tokens + data.max_response_tokens
    max_tokens = compute.max_tokens_per_microbatch
    if max_tokens is not None and max_tokens < longest:
        yield (
            f"compute.max_tokens_per_microbatch = {max_tokens} does not hold the longest row, "
            f"data.max_prompt_tokens + data.max_response_tokens = {longest} tokens; make it at "
            "least that, or leave it out"
        )


def check_run_directory(checkpoint: CheckpointConfig, log: LogConfig) -> Iterator[str]:
    """Yield what is wrong with where the run writes and how often."""
    yield from violations(
        "checkpoint", checkpoint, {"save_interval": NOT_NEGATIVE, "keep_last": NOT_NEGATIVE}
    )
    yield from violations("log", log, {"log_interval": POSITIVE, "samples_interval": NOT_NEGATIVE})
    if not checkpoint.save:
        yield "checkpoint.save = '' names no folder; name the run directory"
    elif Path(checkpoint.save).is_file():
        yield f"checkpoint.save = {checkpoint.save!r} is a file; name a folder"
    elif not _can_be_written(Path(checkpoint.save)):
        yield (
            f"checkpoint.save = {checkpoint.save!r} cannot be written to; name a folder that can, "
            "or change its permissions"
        )
    marker = Path(checkpoint.load) / "latest_checkpointed_iteration.txt"
    if checkpoint.load and not marker.is_file():
        yield (
            f"checkpoint.load = {checkpoint.load!r} holds no {marker.name}; name the run directory "
            "of a run that saved a checkpoint, or leave it out to start anew"
        )
    yield from _check_what_is_loaded(checkpoint)
    if log.wandb_project and find_spec("wandb") is None:
        yield (
            f"log.wandb_project = {log.wandb_project!r}, but wandb is not installed; "
            "install megatron-gad[wandb], or leave it out"
        )


def _check_what_is_loaded(checkpoint: CheckpointConfig) -> Iterator[str]:
    """Yield which flags say how checkpoint.load is read, where it names nothing."""
    if checkpoint.load:
        return
    if checkpoint.ckpt_step is not None:
        yield (
            f"checkpoint.ckpt_step = {checkpoint.ckpt_step} chooses a checkpoint of "
            "checkpoint.load, which names none; name a run directory with --load. To go back in "
            f"place, write {checkpoint.ckpt_step} into latest_checkpointed_iteration.txt of "
            f"{checkpoint.save}"
        )
    for key, value in (("load_optim", False), ("finetune", True)):
        if getattr(checkpoint, key) is value:
            yield (
                f"checkpoint.{key} = {str(value).lower()} says what to take of checkpoint.load, "
                "which names nothing; name a run directory with --load, or leave it out"
            )


def check_exports(checkpoint: CheckpointConfig, stages: Sequence[str]) -> Iterator[str]:
    """Yield why a folder of a model could not be written when all training is done."""
    suffixes = ["", *(f"_{stage}" for stage in stages if checkpoint.export_stages)]
    for name in (f"{model}_hf{suffix}" for model in checkpoint.export for suffix in suffixes):
        folder = Path(checkpoint.save) / name
        # A link is followed, and what it leads to replaced.
        target = Path(os.path.realpath(folder))
        remedy = f"move it away, or leave {name.partition('_')[0]!r} out of checkpoint.export"
        if target.is_symlink() or target.is_file():
            yield f"{folder}, to which the run exports, is a file or a link in a circle; {remedy}"
        elif target.is_dir() and any(target.iterdir()) and not (target / "config.json").exists():
            yield (
                f"{folder}, to which the run exports, holds files and no config.json, so it is "
                f"no model to be replaced; {remedy}"
            )
        elif not _can_be_written(target.parent):
            yield f"{target.parent}, which {folder} leads to, cannot be written to; {remedy}"


def _can_be_written(folder: Path) -> bool:
    """Return whether a folder can be written to, or be made."""
    existing = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
    )
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def check_data(data: DataConfig) -> Iterator[str]:
    """Yield what is wrong with the data section; rows are checked when they are read."""
    lengths = ("max_prompt_tokens", "max_response_tokens")
    yield from violations("data", data, dict.fromkeys(lengths, POSITIVE))
    if not data.path:
        yield "data.path is not set; name a data file, a folder of them, or hub:<name>"
    for key, path in (("path", data.path), ("eval_path", data.eval_path)):
        if path and not path.startswith("hub:") and not Path(path).exists():
            yield (
                f"data.{key} = {path!r} does not exist; name a data file, a folder of them, or "
                "hub:<name>; paths are relative to the folder the command runs in"
            )
    for key in ("prompt_column", "teacher_column"):
        if not getattr(data, key):
            yield f"data.{key} = '' names no column; name a column of the data set"
    if data.prompt_column and data.prompt_column == data.teacher_column:
        yield (
            f"data.prompt_column = data.teacher_column = {data.prompt_column!r}; "
            "prompts and teacher responses are two columns"
        )


def check_optimizer(
    optimizer: OptimizerConfig, student: StudentConfig, discriminator: DiscriminatorConfig
) -> Iterator[str]:
    """Yield what is wrong with the optimizer of both models, their rates and first weights."""
    not_negative = ("min_lr", "lr_warmup_steps", "weight_decay", "clip_grad")
    rules = dict.fromkeys(not_negative, NOT_NEGATIVE)
    yield from violations("optimizer", optimizer, rules | {"adam_beta1": BETA, "adam_beta2": BETA})
    yield from violations("student", student, {"lr": POSITIVE})
    rules = {"lr": POSITIVE, "head_std": NOT_NEGATIVE}
    yield from violations("discriminator", discriminator, rules)
    if optimizer.min_lr > student.lr:
        yield (
            f"optimizer.min_lr = {optimizer.min_lr} is above student.lr = {student.lr}, but the "
            "rate decays to it; make it smaller"
        )


def check_algorithm(gad: GadConfig) -> Iterator[str]:
    """Yield what is wrong with the section of the algorithm."""
    yield from violations("gad", gad, {"kl_coef": NOT_NEGATIVE, "clip_range_high": POSITIVE})
    yield from violations("gad", gad, {"negatives_pool": NOT_NEGATIVE})
    if gad.negatives_pool and not 0 < gad.negatives_share < 1:
        yield (
            f"gad.negatives_share = {gad.negatives_share} is not allowed; give a value between 0 "
            "and 1 (0.5 is a beginning), or gad.negatives_pool = 0 for no past groups"
        )
    if not 0 < gad.clip_range < 1:
        yield f"gad.clip_range = {gad.clip_range} is not allowed; give a value between 0 and 1"
    if gad.dual_clip != 0 and not gad.dual_clip > 1:
        yield (
            f"gad.dual_clip = {gad.dual_clip} would cut off ratios of 1, of which every batch "
            "begins; give a value above 1 (3 is usual), or 0 for no such bound"
        )
    if gad.dual_clip != 0 and gad.policy_loss == "cispo":
        yield (
            f"gad.dual_clip = {gad.dual_clip} bounds an objective that is clipped, but "
            "gad.policy_loss = 'cispo' clips weights, from above already; leave one of them out"
        )
    if gad.kl_coef > 0 and gad.kl_in == "loss" and gad.kl_estimator == "k1":
        yield (
            "gad.kl_estimator = 'k1' with kl_in = 'loss' has a gradient of zero in expectation; "
            "use 'k2' or 'k3' in the loss, or kl_in = 'reward'"
        )
    if gad.tis_cap != 0 and not gad.tis_cap >= 1:
        yield (
            f"gad.tis_cap = {gad.tis_cap} would scale every ratio down; "
            "give 1 or more (2 is usual), or 0 to switch the correction off"
        )


def check_rollout(rollout: RolloutConfig) -> Iterator[str]:
    """Yield what is wrong with sampling."""
    rules = {"max_total_tokens": POSITIVE, "logprob_gap_bound": NOT_NEGATIVE}
    yield from violations("rollout", rollout, rules)
    if not POSITIVE.holds(rollout.temperature):
        yield (
            f"rollout.temperature = {rollout.temperature} samples greedily, so that the "
            "responses to a prompt are all equal; give a value above 0, 0.8 is the paper's"
        )


def check_embedded(rollout: RolloutConfig, data: DataConfig) -> Iterator[str]:
    """Yield what is wrong with the memory of the embedded engine."""
    needed = most_tokens_of_a_row(data)
    if 0 < rollout.max_total_tokens < needed:
        yield (
            f"rollout.max_total_tokens = {rollout.max_total_tokens} has no room for the longest "
            f"prompt (data.max_prompt_tokens = {data.max_prompt_tokens}) with its response "
            f"(data.max_response_tokens = {data.max_response_tokens}); make it at least {needed}"
        )


def most_tokens_of_a_row(data: DataConfig) -> int:
    """Return the room that one row of the embedded engine may take, in whole blocks."""
    longest = (data.max_prompt_tokens, data.max_response_tokens)
    return sum(-(-tokens // EMBEDDED_BLOCK) * EMBEDDED_BLOCK for tokens in longest)


def check_replay(rollout: RolloutConfig) -> Iterator[str]:
    """Yield what is wrong with the rollouts that are to be given again."""
    if not rollout.replay:
        yield (
            "rollout.engine = 'replay' needs rollout.replay, the run directory of a run with "
            "rollout.record = true; name it, or use another engine"
        )
    elif not Path(rollout.replay).is_dir():
        yield (
            f"rollout.replay = {rollout.replay!r} is no folder; name the run directory of a run "
            "with rollout.record = true"
        )


def check_watchdog(watchdog: WatchdogConfig) -> Iterator[str]:
    """Yield what is wrong with the deadlines of the phases."""
    rules = dict.fromkeys(asdict(watchdog), DEADLINE_OR_NONE)
    yield from violations("watchdog", watchdog, rules | {"max_skipped_steps": NOT_NEGATIVE})


def check_schedule(schedule: ScheduleConfig) -> Iterator[str]:
    """Yield what is wrong with the memory that decides who leaves the device."""
    yield from violations("schedule", schedule, {"device_memory_gib": GIBIBYTES})
