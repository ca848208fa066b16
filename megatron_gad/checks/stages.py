"""Checks of the stages' sections."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from megatron_gad.checks.values import NOT_NEGATIVE, POSITIVE, violations
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.rollout import RolloutConfig
from megatron_gad.config.stages import AdversarialConfig, GadConfig, SeqkdConfig, WarmupConfig

STAGE_ORDER = ("seqkd", "warmup", "adversarial")
# The Bradley-Terry loss of a discriminator that cannot tell the two sides apart.
CHANCE_LOSS = math.log(2.0)


def check_stage_names(stages: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with the list of stages."""
    in_order = [name for name in STAGE_ORDER if name in stages]
    if not stages:
        yield "stages = [] does nothing; name at least one of " + ", ".join(STAGE_ORDER)
    elif list(stages) != in_order:
        yield (
            f"stages = {list(stages)} is out of order or names a stage twice; "
            f"stages hand over from left to right: write {in_order}"
        )


def check_offload(stages: Sequence[str], compute: ComputeConfig) -> Iterator[str]:
    """Yield what keeps an optimizer on the host from training the models of the stages."""
    if compute.optimizer_cpu_offload and set(stages) - {"seqkd"}:
        # Megatron refreshes and restores the host's copies of weights in 16 bits only.
        yield (
            f"compute.optimizer_cpu_offload = True with stages = {list(stages)}: the head of a "
            "discriminator is float32, which an optimizer on the host cannot load; leave it out, "
            "or run stages = ['seqkd'] alone"
        )


class DataSizes(NamedTuple):
    """Data-parallel ranks of both models, each of which has to be given a share of a step."""

    student: int
    discriminator: int


def check_seqkd(stage: SeqkdConfig, has_eval: bool, student_size: int) -> Iterator[str]:
    """Yield what is wrong with stage seqkd; has_eval: data.eval_path is set."""
    yield from violations("seqkd", stage, {"lr": POSITIVE, "patience": NOT_NEGATIVE})
    yield from _length("seqkd", stage, "batch_size", DataSizes(student_size, student_size))
    wishes = {"patience": stage.patience > 0, "keep_best": stage.keep_best}
    for key, is_wished in wishes.items():
        if is_wished and not has_eval:
            yield (
                f"seqkd.{key} = {getattr(stage, key)} compares held-out losses, but data.eval_path "
                "is not set; set it, or leave the option out"
            )


def check_warmup(stage: WarmupConfig, sizes: DataSizes) -> Iterator[str]:
    """Yield what is wrong with stage warmup."""
    rules = dict.fromkeys(("discriminator_only_steps", "stop_below", "refuse_above"), NOT_NEGATIVE)
    rules |= dict.fromkeys(("group_size", "student_lr", "discriminator_lr"), POSITIVE)
    yield from violations("warmup", stage, rules)
    yield from _length("warmup", stage, "prompts_per_step", sizes)
    if stage.train_student:
        yield from _student_never_learns("warmup", stage)
    if stage.stop_below >= CHANCE_LOSS:
        yield (
            f"warmup.stop_below = {stage.stop_below} is not below ln 2 = 0.693, the loss of a "
            "discriminator that guesses; take 0.4 to 0.6, or 0 to end by count"
        )
    if 0 < stage.refuse_above < stage.stop_below:
        yield (
            f"warmup.refuse_above = {stage.refuse_above} is below warmup.stop_below = "
            f"{stage.stop_below}, so a stage that ends in time is refused; make it larger, or 0"
        )


def check_adversarial(stage: AdversarialConfig, sizes: DataSizes) -> Iterator[str]:
    """Yield what is wrong with stage adversarial."""
    not_negative = (
        "discriminator_samples",
        "discriminator_only_steps",
        "extra_discriminator_steps",
    )
    positive = ("discriminator_interval", "student_updates", "student_lr", "discriminator_lr")
    rules = dict.fromkeys(not_negative, NOT_NEGATIVE) | dict.fromkeys(positive, POSITIVE)
    yield from violations("adversarial", stage, rules)
    yield from _length("adversarial", stage, "prompts_per_step", sizes)
    yield from _student_never_learns("adversarial", stage)
    if stage.group_size < 2:
        yield (
            f"adversarial.group_size = {stage.group_size} gives zero advantages; "
            "use 2 or more, or stages = ['seqkd']"
        )
    if stage.discriminator_samples > stage.group_size:
        yield (
            f"adversarial.discriminator_samples = {stage.discriminator_samples} is more than the "
            f"adversarial.group_size = {stage.group_size} samples of a prompt; "
            "make it smaller, or 0 for all"
        )
    if stage.extra_discriminator_steps > 0:
        yield from _divisibility("adversarial", stage, "extra_prompts", sizes)
    if stage.freeze_discriminator and stage.extra_discriminator_steps > 0:
        yield (
            "adversarial.freeze_discriminator = True, but adversarial.extra_discriminator_steps = "
            f"{stage.extra_discriminator_steps}; a frozen discriminator never learns: set one of "
            "them back"
        )


def check_overlap(
    stage: AdversarialConfig, gad: GadConfig, rollout: RolloutConfig
) -> Iterator[str]:
    """Yield what is missing for sampling while training."""
    if not stage.overlap:
        return
    if gad.tis_cap == 0:
        yield (
            "adversarial.overlap = True trains on samples of older weights, but gad.tis_cap = 0 "
            "leaves that uncorrected; set gad.tis_cap = 2, or leave overlap out"
        )
    if rollout.engine == "embedded" and torch.cuda.is_available():
        yield (
            "adversarial.overlap = True with rollout.engine = 'embedded' takes turns with training "
            "on the same GPU and gains nothing; use 'sglang', best with sglang.urls on other "
            "GPUs, or leave overlap out"
        )


def _length(
    table: str,
    stage: SeqkdConfig | WarmupConfig | AdversarialConfig,
    batch_key: str,
    sizes: DataSizes,
) -> Iterator[str]:
    """Yield what is wrong with a stage's length and with the size of its steps."""
    length = "epochs" if stage.steps is None else "steps"
    yield from violations(table, stage, {length: POSITIVE})
    yield from _divisibility(table, stage, batch_key, sizes)


def _divisibility(table: str, stage: object, key: str, sizes: DataSizes) -> Iterator[str]:
    """Yield a message unless the data ranks of both models can share the number evenly."""
    count = getattr(stage, key)
    unit = math.lcm(*sizes)
    if count <= 0 or count % unit:
        whose = f"{sizes.student} data-parallel rank(s)"
        if sizes.student != sizes.discriminator:
            whose += f" of the student and of the {sizes.discriminator} of the discriminator"
        yield (
            f"{table}.{key} = {count} has to be a positive multiple of the {whose}; "
            f"the next that is one is {max(1, -(-count // unit)) * unit}"
        )


def _student_never_learns(table: str, stage: WarmupConfig | AdversarialConfig) -> Iterator[str]:
    """Yield a message where the stage ends before the student's first step."""
    if stage.steps is not None and 0 < stage.steps <= stage.discriminator_only_steps:
        yield (
            f"{table}.steps = {stage.steps} ends before the student learns: {table}."
            f"discriminator_only_steps = {stage.discriminator_only_steps}; make steps larger"
        )
