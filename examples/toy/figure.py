"""The figure of the toy: where each student puts its mass, and how the reverse KL goes down."""

import os
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.toy.mixture import NUM_CLASSES
from examples.toy.play import GAMES, NUM_END_STEPS, Outcome

# Okabe and Ito's palette, told apart by colour-blind readers too.
COLORS = {
    "teacher": "#B0B0B0",
    "SeqKD": "#E69F00",
    "GAD": "#0072B2",
    "equal rates": "#CC79A7",
    "frozen D": "#D55E00",
}
BAR_WIDTH = 0.28


def write_figure(outcomes: dict[str, Outcome], path: Path) -> None:
    """Draw one row of panels per case and write it as a PNG file, at once or not at all.

    outcomes: case name -> its runs.
    """
    figure = Figure(figsize=(11, 3.7 * len(outcomes)), layout="constrained")
    panels = figure.subplots(len(outcomes), 2, squeeze=False, width_ratios=(1, 1.15))
    for row, (name, outcome) in zip(panels, outcomes.items(), strict=True):
        _draw_bars(row[0], outcome)
        _draw_curves(row[1], outcome)
        row[0].set_title(f"Case {name}: what the student says", loc="left")
        row[1].set_title(f"Case {name}: reverse KL from the SeqKD student on", loc="left")
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    figure.savefig(unfinished, format="png", dpi=120)
    os.replace(unfinished, path)


def _draw_bars(axes: Axes, outcome: Outcome) -> None:
    """Draw the probability of every class under the teacher, SeqKD and GAD."""
    logprobs = {
        "teacher": outcome.teacher_logprobs,
        "SeqKD": outcome.seqkd_logprobs,
        "GAD": outcome.games["GAD"].logprobs,
    }
    classes = torch.arange(NUM_CLASSES)
    for place, (name, values) in enumerate(logprobs.items()):
        left = classes + (place - 1) * BAR_WIDTH
        axes.bar(left.numpy(), values.exp().numpy(), BAR_WIDTH, color=COLORS[name], label=name)
    axes.set_xticks(range(NUM_CLASSES))
    axes.set_xlabel("class")
    axes.set_ylabel("probability")
    axes.legend(frameon=False)


def _draw_curves(axes: Axes, outcome: Outcome) -> None:
    """Draw the reverse KL of every game over its steps, and that of exact descent."""
    # GAD last, so that the swings of the others do not cover it.
    for name in reversed(GAMES):
        trace = outcome.games[name]
        label = f"{name} ({trace.end_kl:.2f})"
        axes.plot(trace.reverse_kl.numpy(), color=COLORS[name], linewidth=1.4, label=label)
    exact = outcome.exact
    label = f"exact descent ({exact.end_kl:.2f})"
    axes.plot(exact.reverse_kl.numpy(), color="black", linestyle="--", linewidth=1.2, label=label)
    # Room above the curves for the legend.
    axes.set_ylim(0, 1.35 * axes.dataLim.y1)
    axes.set_xlabel("step")
    axes.set_ylabel("KL(student || teacher), nats")
    axes.legend(
        frameon=False,
        title=f"mean of the last {NUM_END_STEPS} steps in brackets",
        fontsize="small",
        title_fontsize="small",
        ncols=2,
        loc="upper right",
    )
