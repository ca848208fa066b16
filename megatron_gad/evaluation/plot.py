"""The verdict on each answer beside its length, to see whether one follows the other."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from megatron_gad.evaluation.measures import Measured

VERDICTS = {"score": "judge's score", "win": "wins, mean of both orders"}
BINS = 6


def draw_lengths(measured: Mapping[str, Measured], path: Path) -> bool:
    """Draw every student's answers, and their means by length; False if nothing was judged."""
    found = [v for v in VERDICTS if any(v in each.per_prompt for each in measured.values())]
    if not found:
        return False
    # Half a second, which an evaluation without a judge need not wait for.
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(6.5, 3.6 * len(found)), layout="constrained")
    panels = figure.subplots(len(found), 1, squeeze=False)[:, 0]
    for verdict, panel in zip(found, panels, strict=True):
        for name, each in measured.items():
            values = each.per_prompt.get(verdict)
            if values is None or np.isnan(values).all():
                continue
            words = np.maximum(each.per_prompt["words"], 1.0)[~np.isnan(values)]
            values = values[~np.isnan(values)]
            (line,) = panel.plot(words, values, ".", alpha=0.25, markersize=4)
            order = np.array_split(np.argsort(words), min(BINS, len(words)))
            means = [(float(words[part].mean()), float(values[part].mean())) for part in order]
            panel.plot(*zip(*means, strict=True), "o-", color=line.get_color(), label=name)
        panel.set_xscale("log")
        panel.set_ylabel(VERDICTS[verdict])
        panel.legend(frameon=False, fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("words of the answer; lines are means of equally many answers")
    figure.savefig(path, dpi=110)
    return True
