"""``make compare``: every way of learning from a teacher's text, at equal compute."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from examples.compare.arms import ARMS, BASE
from examples.compare.figure import draw
from examples.compare.play import Seed
from examples.compare.results import Results, summary
from examples.compare.tasks import TASKS

SUMMARY, FIGURE = "summary.md", "compare.png"


@dataclass(frozen=True)
class Options:
    """Compare the ways of learning from a teacher's text at equal compute, on two tasks.

    Every arm that finished with the same settings is kept, so the same command goes on after an
    interruption. Summary and figure are written anew after each arm.

    Attributes:
        out: folder of the runs, summary.md and compare.png.
        tasks: names of tasks; all of them by default.
        seeds: each makes its own data, student and training.
        arms: names of arms; all of them by default.
    """

    out: Annotated[Path, tyro.conf.arg(help_behavior_hint="")] = Path("runs/compare")
    tasks: tuple[str, ...] = tuple(TASKS)
    seeds: tuple[int, ...] = (20, 21, 22)
    arms: tuple[str, ...] = tuple(ARMS)


def main(options: Options) -> None:
    """Run what is missing, arm after arm, so that all seeds and tasks have the first arms first."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    results: Results = {}
    for arm in (BASE, *options.arms):
        for task in options.tasks:
            for seed in options.seeds:
                opened = Seed.open(TASKS[task], seed, options.out)
                found = opened.begin() if arm == BASE else opened.play(arm)
                results.setdefault(task, {}).setdefault(arm, {})[seed] = found
                print(f"{task}, seed {seed}, {arm}: {100 * found['accuracy']:.1f} %", flush=True)
                (options.out / SUMMARY).write_text(summary(results), encoding="utf-8")
    draw(results, options.out / FIGURE)
    print(f"{options.out / SUMMARY} and {options.out / FIGURE}")


if __name__ == "__main__":
    main(tyro.cli(Options))
