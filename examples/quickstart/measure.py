"""The checker's verdict on an arm, and the verdict that any task can have."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.quickstart.robot_turns import check, report
from megatron_gad.engines.base import SamplingConfig
from megatron_gad.evaluation.answers import answer
from megatron_gad.evaluation.command import evaluate
from megatron_gad.evaluation.intervals import bootstrap_interval
from megatron_gad.evaluation.options import EndpointOptions, EvaluateOptions

MAX_NEW_TOKENS = 24
NUM_SAMPLES = 4
BASELINE = "seqkd_equal_compute"
VERDICT = "verdict"  # folder of what ``compare_arms`` writes, in a run directory


def measure(hf_folder: Path, prompts: Sequence[str], seed: int) -> dict[str, Any]:
    """Return accuracy sampled at T = 1 with its interval over prompts, and accuracy when greedy."""
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    sampling = SamplingConfig(temperature=1.0, max_new_tokens=MAX_NEW_TOKENS, seed=seed)
    greedy = SamplingConfig(temperature=0.0, max_new_tokens=MAX_NEW_TOKENS)
    sampled = answer(hf_folder, conversations, sampling)
    verdicts = [
        float(check(prompt, text).is_right) for prompt, text in zip(prompts, sampled, strict=True)
    ]
    interval = bootstrap_interval(verdicts, np.random.default_rng(seed))
    likeliest = report(prompts, answer(hf_folder, conversations, greedy))
    summary = report(prompts, sampled)
    return {
        "accuracy": summary["accuracy"],
        "accuracy_low": interval.low,
        "accuracy_high": interval.high,
        "greedy_accuracy": likeliest["accuracy"],
        "layout_shares": summary["layout_shares"],
        "accuracy_by_layout": summary["accuracy_by_layout"],
        "length_mean": summary["length_mean"],
        "examples": [
            {"prompt": prompt, "answer": text}
            for prompt, text in zip(prompts[:5], sampled[:5], strict=True)
        ],
    }


def compare_arms(arms: dict[str, Path], rows: Path, out: Path, seed: int) -> None:
    """Write what ``megatron-gad evaluate`` says of the arms, which knows nothing of the task.

    rows: held-out prompts with the teacher's responses. out: folder for evaluation.md and the rest.
    """
    # The first is what the others are compared with.
    names = sorted(arms, key=lambda name: name != BASELINE)
    evaluate(
        EvaluateOptions(
            students=tuple(f"{name}={arms[name]}" for name in names),
            prompts=(str(rows),),
            out=out,
            endpoint=EndpointOptions(),
            num_samples=NUM_SAMPLES,
            temperature=1.0,
            max_tokens=MAX_NEW_TOKENS,
            seed=seed,
            likelihood=True,
            show_progress=False,
        )
    )


def table(results: dict[str, dict[str, Any]], arms: dict[str, str]) -> str:
    """Return the arms' results as a Markdown table; arms maps a key of results to its name."""
    header = "| | accuracy, T = 1 (95 %) | greedy | because | steps | list | none | words |"
    lines = [header, "|---|---|---|---|---|---|---|---|"]
    for key, name in arms.items():
        arm = results[key]
        shares = " | ".join(
            f"{100 * arm['layout_shares'][layout]:.0f} %"
            for layout in ("because", "steps", "list", "none")
        )
        spread = f"{100 * arm['accuracy_low']:.0f}-{100 * arm['accuracy_high']:.0f}"
        lines.append(
            f"| {name} | {100 * arm['accuracy']:.1f} % ({spread}) | "
            f"{100 * arm['greedy_accuracy']:.1f} % | {shares} | {arm['length_mean']:.1f} |"
        )
    return "\n".join(lines)
