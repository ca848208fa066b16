"""The figure: accuracy of every arm on both tasks, a point for each seed."""

from pathlib import Path

from matplotlib.figure import Figure

from examples.compare.results import Results, title_of
from examples.compare.tasks import TASKS


def draw(results: Results, path: Path) -> None:
    """Write the figure; the arms stand in the order of the first task's means."""
    first = next(iter(results.values()))

    def mean(arm: str) -> float:
        found = [each["accuracy"] for each in first[arm].values()]
        return sum(found) / len(found)

    order = sorted(first, key=mean)
    height = 1.2 + 0.27 * len(order)
    figure = Figure(figsize=(9.5, height), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for panel, (name, arms) in zip(panels, results.items(), strict=True):
        for place, arm in enumerate(order):
            for key, colour, shape in (("greedy", "0.65", "|"), ("accuracy", "C0", "o")):
                values = [100 * each[key] for each in arms.get(arm, {}).values()]
                panel.plot(values, [place] * len(values), shape, color=colour, alpha=0.8)
        panel.set_yticks(range(len(order)), [title_of(arm) for arm in order])
        panel.set_title(TASKS[name].title, loc="left", fontsize=10)
        panel.set_xlabel("right, % (points: sampled; bars: greedy)")
        panel.set_xlim(-2, 102)
        panel.grid(axis="both", color="0.92")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
