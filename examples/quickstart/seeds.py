"""Several seeds of the quickstart, and one text about all of them: ``summary.md``."""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from examples.quickstart.measure import VERDICT
from examples.quickstart.robot_turns import LAYOUT_WEIGHTS
from megatron_gad.evaluation.intervals import seeds_interval
from megatron_gad.evaluation.results import arms_of_verdicts
from megatron_gad.evaluation.table import RESULTS_FILE, arm_rows

SUMMARY_FILE = "summary.md"
SETTINGS_FILE = "settings.toml"  # beside the results that were made with them
# What of the verdict without a checker is shown.
MEASURES = (
    *("auc_text", "auc_length", "auc_format", "f1_2", "nats_per_token", "self_bleu", "words"),
)


def run_seeds(
    out: Path,
    seeds: Sequence[int],
    run_seed: Callable[[Path, int], dict[str, Any]],
    settings: str,
    arms: dict[str, str],
) -> str:
    """Run every seed in a folder of its own and return the summary, which is written after each.

    A seed that finished there with the same settings is not run again, so that the same command
    goes on after an interruption. A seed whose training fails is named in the summary.

    settings: the text of the configuration file. arms: key of results -> its name.
    """
    results: dict[int, dict[str, Any]] = {}
    verdicts: list[dict[str, Any]] = []
    failed: list[int] = []
    summary = ""
    for seed in seeds:
        folder = out / f"seed_{seed}"
        finished = read_finished(folder, settings)
        if finished is not None:
            print(f"Seed {seed} is finished in {folder}", flush=True)
        else:
            print(f"Seed {seed}", flush=True)
            try:
                finished = run_seed(folder, seed)
                (folder / SETTINGS_FILE).write_text(settings)
            except subprocess.CalledProcessError as error:
                print(f"Seed {seed} failed: {error}", flush=True)
        if finished is None:
            failed.append(seed)
        else:
            results[seed] = finished
            verdicts.append(json.loads((folder / VERDICT / RESULTS_FILE).read_text()))
        summary = summarise_seeds(results, failed, arms) + summarise_verdicts(verdicts, arms)
        out.mkdir(parents=True, exist_ok=True)
        (out / SUMMARY_FILE).write_text(summary)
    return summary


def read_finished(folder: Path, settings: str) -> dict[str, Any] | None:
    """Return the results of a seed that finished with these settings, else None."""
    made_with = folder / SETTINGS_FILE
    if not made_with.exists() or made_with.read_text() != settings:
        return None
    return json.loads((folder / "results.json").read_text())


def summarise_seeds(
    results: dict[int, dict[str, Any]], failed: Sequence[int], arms: dict[str, str]
) -> str:
    """Return Markdown: a row per seed, the mean over seeds, wins of GAD, accuracy by layout.

    results: seed -> what ``results.json`` holds. failed: seeds without any. arms: key of results
    -> its name.
    """
    lines = [_accuracies(results, arms)]
    if len(results) > 1:
        means = " | ".join(_mean(results, arm) for arm in arms)
        lines.append(f"| mean (95 %) | {means} | |")
    wins = sum(
        result["gad"]["accuracy"] > result["seqkd_equal_compute"]["accuracy"]
        for result in results.values()
    )
    lines.append(
        f"\nExact accuracy in % on 400 held-out prompts, sampled at T = 1 / greedy. GAD is above "
        f"SeqKD at equal compute on {wins} of {len(results) + len(failed)} seeds."
    )
    if failed:
        names = ", ".join(map(str, failed))
        lines.append(
            f"Training failed on seed {names}: no row above has it, and the mean leaves it out."
        )
    lines += ["", _layouts(results, arms), ""]
    return "\n".join(lines)


def summarise_verdicts(verdicts: Sequence[dict[str, Any]], arms: dict[str, str]) -> str:
    """Return Markdown: what the evaluation without a checker says of the arms, as means over seeds.

    verdicts: what ``evaluation.json`` of each seed holds. Empty for fewer than two.
    """
    if len(verdicts) < 2:
        return ""
    means = arms_of_verdicts(verdicts)
    shown = {arms[arm]: {name: means[arm][name] for name in MEASURES} for arm in arms}
    rows = arm_rows({**verdicts[0], "arms": shown})
    lines = [
        f"\nThe verdict without a checker: means over {len(verdicts)} seeds with 95 % intervals.",
        "",
        f"| | {' | '.join(shown)} |",
        "|---" * (len(shown) + 1) + "|",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows),
        "",
    ]
    return "\n".join(lines)


def _accuracies(results: dict[int, dict[str, Any]], arms: dict[str, str]) -> str:
    lines = [
        f"| seed | {' | '.join(arms.values())} | seconds |",
        "|---" * (len(arms) + 2) + "|",
    ]
    for seed, result in results.items():
        row = " | ".join(
            f"{100 * result[arm]['accuracy']:.1f} / {100 * result[arm]['greedy_accuracy']:.1f}"
            for arm in arms
        )
        lines.append(f"| {seed} | {row} | {result['seconds']['total']:.0f} |")
    return "\n".join(lines)


def _mean(results: dict[int, dict[str, Any]], arm: str) -> str:
    parts = []
    for key in ("accuracy", "greedy_accuracy"):
        interval = seeds_interval([result[arm][key] for result in results.values()])
        mean, low, high = (100 * x for x in (interval.mean, interval.low, interval.high))
        parts.append(f"{mean:.1f} ({low:.1f} to {high:.1f})")
    return " / ".join(parts)


def _layouts(results: dict[int, dict[str, Any]], arms: dict[str, str]) -> str:
    lines = [
        "By layout: the share of the sampled responses that follow it, and how many of those are "
        "right, in %.",
        "",
        f"| seed | student | {' | '.join(LAYOUT_WEIGHTS)} |",
        "|---" * (len(LAYOUT_WEIGHTS) + 2) + "|",
    ]
    for seed, result in results.items():
        for arm in ("seqkd_equal_compute", "gad"):
            shares, right = result[arm]["layout_shares"], result[arm]["accuracy_by_layout"]
            cells = " | ".join(
                f"{100 * shares[layout]:.0f}, {_per_cent(right[layout])}"
                for layout in LAYOUT_WEIGHTS
            )
            lines.append(f"| {seed} | {arms[arm]} | {cells} |")
    return "\n".join(lines)


def _per_cent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}"
