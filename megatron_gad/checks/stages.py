"""Checks of the stages' sections: the rules of every stage, and those that its section has."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from megatron_gad.checks.values import NOT_NEGATIVE, POSITIVE, violations
from megatron_gad.config.data import DataConfig
from megatron_gad.config.gad import GadConfig
from megatron_gad.config.rewards import RewardConfig, score_weight
from megatron_gad.config.rollout import RolloutConfig
from megatron_gad.config.stage_section import StageSection, stage_kinds


def check_stage_names(stages: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with the list of stages."""
    known = [kind.name for kind in stage_kinds()]
    in_order = [name for name in known if name in stages]
    if not stages:
        yield "stages = [] does nothing; name at least one of " + ", ".join(known)
    elif list(stages) != in_order:
        yield (
            f"stages = {list(stages)} is out of order or names a stage twice; "
            f"stages hand over from left to right: write {in_order}"
        )


def check_ranking(
    sections: Sequence[StageSection], load: str, rewards: Sequence[RewardConfig]
) -> Iterator[str]:
    """Yield why a stage has no discriminator that could rank for it.

    load: a checkpoint to begin from, which may hold one. rewards: may give its score no weight.
    """
    taught = bool(load)
    for section in sections:
        is_asked = score_weight(rewards) != 0 or section.compares_scores
        if section.ranks_by_discriminator and is_asked and not taught:
            yield (
                f"stages has {section.name!r}, which ranks by a discriminator that no stage before "
                "it teaches; put 'warmup' before it, or give checkpoint.load of a run that has one"
            )
        taught = taught or (section.uses_discriminator and not section.ranks_by_discriminator)


class DataSizes(NamedTuple):
    """Data-parallel ranks of both models, each of which has to be given a share of a step."""

    student: int
    discriminator: int


def check_stage(section: StageSection, data: DataConfig, sizes: DataSizes) -> Iterator[str]:
    """Yield what is wrong with a stage: ranges, length, even shares, and its own rules."""
    rules = dict.fromkeys(section.not_negative, NOT_NEGATIVE)
    rules |= dict.fromkeys(section.positive, POSITIVE)
    rules |= {"epochs": POSITIVE, "steps": POSITIVE}
    yield from violations(section.name, section, rules)
    if not section.uses_discriminator:
        sizes = DataSizes(sizes.student, sizes.student)
    for key in section.shared_keys:
        yield from _divisibility(section.name, key, getattr(section, key), sizes)
    unit = math.lcm(*sizes) * section.num_parts
    if section.num_parts > 1 and section.num_prompts % unit:
        yield (
            f"{section.name}.{section.batch_key} = {section.num_prompts} has to be a multiple of "
            f"{unit}: of the {section.num_parts} minibatches each is shared out evenly; the next "
            f"that is one is {-(-section.num_prompts // unit) * unit}"
        )
    yield from section.problems(data)


def check_overlap(name: str, gad: GadConfig, rollout: RolloutConfig) -> Iterator[str]:
    """Yield what is missing for sampling while training. name: of the stage that does."""
    if gad.tis_cap == 0:
        yield (
            f"{name}.overlap = True trains on samples of older weights, but gad.tis_cap = 0 "
            "leaves that uncorrected; set gad.tis_cap = 2, or leave overlap out"
        )
    if rollout.engine == "embedded" and torch.cuda.is_available():
        yield (
            f"{name}.overlap = True with rollout.engine = 'embedded' takes turns with training "
            "on the same GPU and gains nothing; use 'sglang', best with sglang.urls on other "
            "GPUs, or leave overlap out"
        )


def _divisibility(table: str, key: str, count: int, sizes: DataSizes) -> Iterator[str]:
    """Yield a message unless the data ranks of both models can share the number evenly."""
    unit = math.lcm(*sizes)
    if count <= 0 or count % unit:
        whose = f"{sizes.student} data-parallel rank(s)"
        if sizes.student != sizes.discriminator:
            whose += f" of the student and of the {sizes.discriminator} of the discriminator"
        yield (
            f"{table}.{key} = {count} has to be a positive multiple of the {whose}; "
            f"the next that is one is {max(1, -(-count // unit)) * unit}"
        )
