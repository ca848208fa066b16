"""Everything that is measured of a student's answers without a judge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_gad.evaluation.answers import Answered
from megatron_gad.evaluation.coverage import coverage
from megatron_gad.evaluation.diversity import self_bleu
from megatron_gad.evaluation.flaws import is_other_language, is_refusal
from megatron_gad.evaluation.intervals import (
    Interval,
    bootstrap_interval,
    count_interval,
    paired_bootstrap_interval,
)
from megatron_gad.evaluation.items import Item
from megatron_gad.evaluation.ngram_f1 import ngram_f1, split_words
from megatron_gad.evaluation.repetition import distinct_ngrams, repetition
from megatron_gad.evaluation.two_sample import FEWEST_PROMPTS, Side, TwoSample, two_sample

Numbers = NDArray[np.float64]
LARGEST_N = 6
# Measures that are true or false of a prompt, as far as "win" has no ties.
COUNTED = (
    "blank", "cut", "refusal", "other_language", "win", "instructions_strict", "instructions_loose",
)  # fmt: skip
TEACHER_ROW = "(teacher)"  # where the teacher's own answers are measured


@dataclass
class Measured:
    """What is known of one student.

    per_prompt: measure -> [N] float64 with a number for each prompt, nan where there is none. Their
        means have intervals over prompts, and differences between students are paired.
    whole: measure -> a number of all answers together, without an interval.
    intervals: measure -> an interval that is no mean over prompts.
    flags: what has to be known of a number, in words.
    """

    per_prompt: dict[str, Numbers] = field(default_factory=dict[str, Numbers])
    whole: dict[str, float] = field(default_factory=dict[str, float])
    intervals: dict[str, Interval] = field(default_factory=dict[str, Interval])
    flags: list[str] = field(default_factory=list[str])


def measure(items: Sequence[Item], answers: Sequence[Sequence[Answered]]) -> Measured:
    """Measure answers by themselves, and against the teacher's as far as there are any.

    answers: a student's to each prompt. The first is what most measures are of; all of them are in
    self-BLEU, coverage and the distinct n-grams.
    """
    first = [each[0].text for each in answers]
    found = Measured()
    per_prompt: dict[str, list[float | None]] = {
        "words": [float(len(split_words(text))) for text in first],
        "characters": [float(len(text)) for text in first],
        "blank": [float(not text.strip()) for text in first],
        "cut": [float(each[0].was_cut) for each in answers],
        "refusal": [float(is_refusal(text)) for text in first],
        "repetition": [repetition(text) for text in first],
        "self_bleu": [self_bleu([a.text for a in each]) for each in answers],
    }
    pairs = [*zip(items, first, strict=True)]
    for n in range(1, LARGEST_N + 1):
        per_prompt[f"f1_{n}"] = [_best_f1(item, text, n) for item, text in pairs]
    per_prompt["other_language"] = [
        _number(is_other_language(text, item.teacher[0].text)) if item.teacher else None
        for item, text in pairs
    ]
    per_prompt["coverage"] = [
        coverage([t.text for t in item.teacher], [a.text for a in each]).share
        if len(item.teacher) > 1
        else None
        for item, each in zip(items, answers, strict=True)
    ]
    found.per_prompt = {
        name: np.array([np.nan if value is None else value for value in values], np.float64)
        for name, values in per_prompt.items()
        if any(value is not None for value in values)
    }
    everything = [answer.text for each in answers for answer in each]
    for n in (1, 2, 3):
        share = distinct_ngrams(everything, n)
        if share is not None:
            found.whole[f"distinct_{n}"] = share
    found.whole |= quantiles(found.per_prompt["words"])
    return found


def quantiles(words: Numbers) -> dict[str, float]:
    """Return the lengths that so many per cent of the answers do not exceed."""
    return {f"words_p{q}": float(np.quantile(words, q / 100)) for q in (10, 50, 90, 99)}


def tell_apart(
    items: Sequence[Item], answers: Sequence[Sequence[Answered]], generator: np.random.Generator
) -> TwoSample | str:
    """Return the AUCs of fresh discriminators, or why there are none."""
    teacher = [(a.text, n) for n, item in enumerate(items) for a in item.teacher]
    student = [
        (a.text, n) for n, (item, each) in enumerate(zip(items, answers, strict=True))
        for a in each if item.teacher
    ]  # fmt: skip
    if len({n for _, n in teacher}) < FEWEST_PROMPTS:
        return f"fewer than {FEWEST_PROMPTS} prompts with an answer of the teacher"
    sides = [Side([t for t, _ in each], [n for _, n in each]) for each in (teacher, student)]
    return two_sample(sides[0], sides[1], generator)


def summary(name: str, values: Numbers, generator: np.random.Generator) -> Interval | None:
    """Return the mean of a measure over the prompts that have it; None if none has."""
    seen = values[~np.isnan(values)]
    if seen.size == 0:
        return None
    if name in COUNTED and {*np.unique(seen)} <= {0.0, 1.0}:
        return count_interval(int(seen.sum()), seen.size)
    return bootstrap_interval(list(seen), generator)


def difference(left: Numbers, right: Numbers, generator: np.random.Generator) -> Interval | None:
    """Return mean(left) - mean(right) over the prompts that have both; None if none has."""
    both = ~(np.isnan(left) | np.isnan(right))
    if not both.any():
        return None
    return paired_bootstrap_interval(list(left[both]), list(right[both]), generator)


def named_generator(seed: int) -> Callable[[str], np.random.Generator]:
    """Return a maker of generators, so that no number depends on what else is measured."""
    return lambda name: np.random.default_rng([seed, *name.encode("utf-8")])


def _best_f1(item: Item, text: str, n: int) -> float | None:
    words = split_words(text)
    scores: list[Any] = [ngram_f1(words, split_words(a.text), n) for a in item.teacher]
    return max((score for score in scores if score is not None), default=None)


def _number(value: bool | None) -> float | None:
    return None if value is None else float(value)


def intervals_of(
    measured: Measured, generator: Callable[[str], np.random.Generator]
) -> Mapping[str, Interval]:
    """Return the intervals of all that is measured per prompt, and the others."""
    found = {
        name: interval
        for name, values in measured.per_prompt.items()
        if (interval := summary(name, values, generator(name))) is not None
    }
    return found | measured.intervals
