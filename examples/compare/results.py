"""The tables: a line for each arm, with intervals over seeds."""

from collections.abc import Sequence
from typing import Any

from examples.compare.arms import ARMS, BASE
from examples.compare.tasks import TASKS, Task
from megatron_gad.evaluation.intervals import Interval, seeds_interval, seeds_mean_interval

# task -> arm -> seed -> what ``result.json`` holds
Results = dict[str, dict[str, dict[int, dict[str, Any]]]]
BASE_TITLE = "SeqKD, where the others begin"
FLOPS_UNIT = 1e12


def summary(results: Results) -> str:
    """Return Markdown: a table for each task."""
    return "\n".join(f"{_table(TASKS[name], arms)}\n" for name, arms in results.items())


def title_of(arm: str) -> str:
    """Return what an arm is called in the tables."""
    return BASE_TITLE if arm == BASE else ARMS[arm].title


def interval(values: Sequence[float], is_share: bool = True) -> Interval | None:
    """Return the mean over seeds with its 95 % interval; None of one seed alone."""
    if len(values) < 2:
        return None
    return seeds_interval(values) if is_share else seeds_mean_interval(values)


def gains(arms: dict[str, dict[int, dict[str, Any]]], arm: str, base: str) -> list[float]:
    """Return by how much the sampled accuracy of an arm is above another's, seed by seed."""
    shared = [seed for seed in arms[arm] if seed in arms.get(base, {})]
    return [arms[arm][seed]["accuracy"] - arms[base][seed]["accuracy"] for seed in shared]


def _table(task: Task, arms: dict[str, dict[int, dict[str, Any]]]) -> str:
    heads = ["arm", "sampled", "greedy", "above SeqKD, longer", *task.shown.values()]
    heads += ["words", "AUC", "TFLOP", "CPU s"]
    seeds = sorted({seed for found in arms.values() for seed in found})
    lines = [
        f"**{task.title}**, seeds {', '.join(map(str, seeds))}",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    lines += [f"| {' | '.join(_cells(task, arms, arm))} |" for arm in arms]
    return "\n".join(lines)


def _cells(task: Task, arms: dict[str, dict[int, dict[str, Any]]], arm: str) -> list[str]:
    found = [*arms[arm].values()]

    def mean(key: str) -> float:
        return sum(each[key] for each in found) / len(found)

    shares = [f"{100 * mean(key):.0f}" for key in task.shown]
    return [
        title_of(arm),
        *(_spread([each[key] for each in found]) for key in ("accuracy", "greedy")),
        _gain(gains(arms, arm, "seqkd_longer")) if arm != "seqkd_longer" else "",
        *shares,
        f"{mean('words'):.1f}",
        f"{mean('auc'):.2f}",
        f"{mean('flops') / FLOPS_UNIT:.2f}",
        f"{mean('seconds'):.0f}",
    ]


def _spread(shares: Sequence[float]) -> str:
    """Return "mean (low to high)" in per cent."""
    found = interval(shares)
    if found is None:
        return f"{100 * shares[0]:.1f}"
    return f"{100 * found.mean:.1f} ({100 * found.low:.0f} to {100 * found.high:.0f})"


def _gain(differences: Sequence[float]) -> str:
    found = interval(differences, is_share=False)
    if found is None:
        return _points(differences[0]) if differences else ""
    mark = "" if found.is_within_noise else "**"
    # Student's t knows no bounds, a difference of two shares does.
    low, high = (_points(max(-1.0, min(1.0, each))) for each in (found.low, found.high))
    return f"{mark}{_points(found.mean)}{mark} ({low} to {high})"


def _points(share: float) -> str:
    return f"{100 * share:+.0f}"
