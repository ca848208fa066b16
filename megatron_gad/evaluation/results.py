"""What was measured of all students, as one plain object for ``evaluation.json``."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from megatron_gad.evaluation.intervals import Interval, seeds_interval, seeds_mean_interval
from megatron_gad.evaluation.judge.calls import Judge
from megatron_gad.evaluation.measures import Measured, difference, intervals_of, named_generator
from megatron_gad.evaluation.students import Student

# Means between 0 and 1, whose intervals over seeds stay there.
SHARES = (
    "win", "win_at_equal_length", "instructions_strict", "instructions_loose", "coverage",
    "self_bleu", "repetition", "refusal", "cut", "blank", "other_language", "auc_text",
    "auc_length", "auc_format", *(f"f1_{n}" for n in range(1, 7)),
)  # fmt: skip


def gather(
    students: Sequence[Student], measured: Mapping[str, Measured], seed: int
) -> dict[str, Any]:
    """Return means with intervals, paired differences from the first student, means over seeds.

    measured: of every student by name, and of the teacher as ``TEACHER_ROW`` if it answered.
    """
    generator = named_generator(seed)
    means = {name: intervals_of(each, generator) for name, each in measured.items()}
    return {
        "students": {
            name: {
                "means": {measure: asdict(each) for measure, each in means[name].items()},
                "numbers": measured[name].whole,
                "flags": measured[name].flags,
            }
            for name in measured
        },
        "differences": _differences(students, measured, seed),
        "arms": _arms(students, means),
    }


def judge_totals(judge: Judge | None) -> dict[str, Any]:
    """Return what the judge was asked and what it cost; empty without a judge."""
    return {} if judge is None else {"model": judge.model, **asdict(judge.spent)}


def _differences(
    students: Sequence[Student], measured: Mapping[str, Measured], seed: int
) -> list[dict[str, Any]]:
    generator = named_generator(seed)
    baseline = measured[students[0].name].per_prompt
    found: list[dict[str, Any]] = []
    for student in students[1:]:
        for measure, values in measured[student.name].per_prompt.items():
            if measure not in baseline:
                continue
            interval = difference(values, baseline[measure], generator(measure))
            if interval is not None:
                found.append(
                    {
                        "measure": measure,
                        "student": student.name,
                        "baseline": students[0].name,
                        **asdict(interval),
                        "is_within_noise": interval.is_within_noise,
                    }
                )
    return found


def _arms(
    students: Sequence[Student], means: Mapping[str, Mapping[str, Interval]]
) -> dict[str, dict[str, Any]]:
    """Return arm -> measure -> interval over seeds, of the arms that have several."""
    arms: dict[str, list[str]] = {}
    for student in students:
        arms.setdefault(student.arm, []).append(student.name)
    return {
        arm: _over_seeds([{m: i.mean for m, i in means[name].items()} for name in names])
        for arm, names in arms.items()
        if len(names) > 1
    }


def arms_of_verdicts(verdicts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return arm -> measure -> interval over seeds, of a verdict for each seed.

    For seeds that have prompts of their own, so that no evaluation holds all of them.

    verdicts: what ``evaluation.json`` holds of each seed; all have the same students.
    """
    return {
        name: _over_seeds(
            [
                {m: each["mean"] for m, each in verdict["students"][name]["means"].items()}
                for verdict in verdicts
            ]
        )
        for name in verdicts[0]["students"]
    }


def _over_seeds(seeds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return measure -> interval of what all seeds have. seeds: measure -> mean of each."""
    found: dict[str, Any] = {}
    for measure in seeds[0]:
        if all(measure in each for each in seeds):
            values = [each[measure] for each in seeds]
            is_share = measure in SHARES
            found[measure] = asdict((seeds_interval if is_share else seeds_mean_interval)(values))
    return found
