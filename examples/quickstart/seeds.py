"""Several seeds of the quickstart in one table."""

from typing import Any

from megatron_gad.evaluation.intervals import seeds_interval


def summarise_seeds(results: dict[int, dict[str, Any]], arms: dict[str, str]) -> str:
    """Return Markdown: a row per seed, the mean over seeds with its interval, wins of GAD.

    results: seed -> what ``results.json`` holds. arms: key of results -> its name.
    """
    cells = " | ".join(arms.values())
    lines = [f"| seed | {cells} | seconds |", "|---" * (len(arms) + 2) + "|"]
    for seed, result in results.items():
        row = " | ".join(
            f"{100 * result[arm]['accuracy']:.1f} / {100 * result[arm]['greedy_accuracy']:.1f}"
            for arm in arms
        )
        lines.append(f"| {seed} | {row} | {result['seconds']['total']:.0f} |")
    if len(results) > 1:
        means = " | ".join(_mean(results, arm) for arm in arms)
        lines.append(f"| mean (95 %) | {means} | |")
    wins = sum(
        result["gad"]["accuracy"] > result["seqkd_equal_compute"]["accuracy"]
        for result in results.values()
    )
    lines.append(
        f"\nExact accuracy in % on 400 held-out prompts, sampled at T = 1 / greedy. GAD is above "
        f"SeqKD at equal compute on {wins} of {len(results)} seeds.\n"
    )
    return "\n".join(lines)


def _mean(results: dict[int, dict[str, Any]], arm: str) -> str:
    parts = []
    for key in ("accuracy", "greedy_accuracy"):
        interval = seeds_interval([100 * result[arm][key] for result in results.values()])
        parts.append(f"{interval.mean:.1f} ({interval.low:.1f} to {interval.high:.1f})")
    return " / ".join(parts)
