"""``make quickstart``: a teacher's text in, a student trained by GAD out, and what it is worth."""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from examples.quickstart.arms import CONFIG, Assets, EqualComputeArm, run_gad
from examples.quickstart.data import collect_data
from examples.quickstart.measure import VERDICT, compare_arms, measure, table
from examples.quickstart.seeds import run_seeds
from examples.quickstart.student import make_student
from megatron_gad.reporting.page import build_report

ARMS = {
    "untrained": "untrained",
    "seqkd": "SeqKD",
    "seqkd_equal_compute": "SeqKD, equal compute",
    "gad": "GAD",
}


@dataclass(frozen=True)
class Options:
    """Teach a tiny student the robot turns, by SeqKD and by GAD, and compare.

    Attributes:
        out: run directory; a run that is in it is removed first.
        seed: seed of the data, the student and the training.
        seeds: several seeds, each in a folder of its own under out. summary.md there is written
            anew after each; a seed that finished with the same settings is not run again.
    """

    out: Annotated[Path, tyro.conf.arg(help_behavior_hint="")] = Path("runs/quickstart")
    seed: int = 0
    seeds: tuple[int, ...] = ()


def main(options: Options) -> None:
    """Run one seed, or several and a summary."""
    if not options.seeds:
        print(table(run_seed(options.out, options.seed), ARMS))
        print(f"\nWhat else the arms are: {options.out / VERDICT}/evaluation.md")
        print(f"Look at {options.out}/report.html; the student is in {options.out}/student_hf/")
        return
    print(run_seeds(options.out, options.seeds, run_seed, CONFIG.read_text(), ARMS))


def run_seed(out: Path, seed: int) -> dict[str, Any]:
    """Make the data, train the arms, measure them; return what ``results.json`` holds."""
    shutil.rmtree(out, ignore_errors=True)
    clock = Clock()
    print(f"[1/3] Collecting the teacher's answers over HTTP, into {out / 'data'}", flush=True)
    data = collect_data(out / "data", seed)
    assets = Assets(data, make_student(out / "student", seed), seed)
    clock.lap("data")
    equal_folder = out / "seqkd_equal_compute"
    print(
        f"[2/3] Training: GAD here; beside it SeqKD for the same time ({equal_folder}.log)",
        flush=True,
    )
    with EqualComputeArm(assets, equal_folder) as equal:
        run_gad(assets, out)
        clock.lap("training")
        equal.finish()
    folders = {
        "untrained": out / "student",
        "seqkd": out / "student_hf_seqkd",
        "seqkd_equal_compute": equal_folder / "student_hf",
        "gad": out / "student_hf",
    }
    print("[3/3] Answering the held-out prompts with each student", flush=True)
    prompts = [json.loads(line)["content"][0]["content"] for line in data.test.open()]
    results: dict[str, Any] = {arm: measure(path, prompts, seed) for arm, path in folders.items()}
    compare_arms(folders, data.test, out / VERDICT, seed)
    clock.lap("evaluation")
    results["seconds"] = clock.seconds
    (out / "results.json").write_text(json.dumps(results, indent=1))
    build_report(out)
    return results


class Clock:
    """Seconds per part, and in all."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.seconds: dict[str, float] = {"total": 0.0}

    def lap(self, part: str) -> None:
        """Note the time since the last lap."""
        now = time.monotonic()
        self.seconds[part] = round(now - self._last, 1)
        self.seconds["total"] = round(self.seconds["total"] + now - self._last, 1)
        self._last = now


if __name__ == "__main__":
    main(tyro.cli(Options))
