"""Training tokens a second on this CPU, in fp32 with one thread a process.

    python -m benchmarks.cpu_step [--json FILE] [--sizes 3x64 4x256] [--steps N] [--rounds N]

One supervised step of the Trainer against the same step of transformers and torch's AdamW, on the
same weights and rows, against the Trainer with its rows packed, which are then attended one by one,
and against the Trainer on two processes, TP2 and DP2. Steps in one process take turns, layouts come
in rounds; medians count. All have to reach the same losses. The ratio is by the clock, and by the
processor's time, which other work on the machine disturbs less.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.cpu_sizes import SIZES
from benchmarks.cpu_worker import LAYOUTS, OURS, PACKED, THEIRS
from benchmarks.machine import describe_machine, write_measurements

ROOT = Path(__file__).resolve().parents[1]
RELATIVE_LOSS_ERROR = 1e-4


@dataclass
class Measured:
    """What was timed of one size: seconds of every step, and losses, by column of the table."""

    parameters: int
    tokens: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    cpu_seconds: dict[str, list[float]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)

    def add(self, layout: str, results: dict[str, Any]) -> None:
        """Take what a worker wrote."""
        for name, result in results.items():
            column = name if layout == "one" else layout
            self.seconds.setdefault(column, []).extend(result["seconds"])
            self.cpu_seconds.setdefault(column, []).extend(result["cpu_seconds"])
            self.losses[column] = result["losses"]

    def tokens_per_second(self) -> dict[str, float]:
        """Return the medians."""
        return {name: self.tokens / statistics.median(s) for name, s in self.seconds.items()}

    def cpu_ratio(self) -> float:
        """Return the processor time of transformers over that of the Trainer."""
        theirs, ours = (statistics.median(self.cpu_seconds[name]) for name in (THEIRS, OURS))
        return theirs / ours

    def check(self, size: str) -> None:
        """Raise RuntimeError where not all computed the same."""
        for name, losses in self.losses.items():
            pairs = zip(losses, self.losses[OURS], strict=True)
            if any(abs(a - b) > RELATIVE_LOSS_ERROR * abs(b) for a, b in pairs):
                raise RuntimeError(
                    f"{size}: losses of {name} {losses} differ from {self.losses[OURS]}; a "
                    "comparison of speed would mean nothing"
                )


def measure(size_name: str, steps: int, rounds: int) -> Measured:
    """Start the workers of one size, in rounds over the layouts."""
    size = SIZES[size_name]
    with tempfile.TemporaryDirectory() as folder:
        parameters = size.save(Path(folder) / "model")
        measured = Measured(parameters, size.rows * size.tokens)
        for _ in range(rounds):
            for layout in LAYOUTS:
                out = Path(folder) / f"{layout}.json"
                _start([size_name, layout, f"{folder}/model", str(steps), str(out)], layout)
                measured.add(layout, json.loads(out.read_text()))
    measured.check(size_name)
    return measured


def _start(arguments: list[str], layout: str) -> None:
    num_ranks = LAYOUTS[layout][0]
    command = [sys.executable, "-m"]
    if num_ranks > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
        command += ["-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += ["benchmarks.cpu_worker", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr[-4000:]}")


def table(measured: dict[str, Measured]) -> str:
    """Return the medians as Markdown; ratios above 1 are in the Trainer's favour."""
    lines = [
        "| model | parameters | tokens a step | transformers | Trainer | ratio | CPU "
        "| packed | TP2 | DP2 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, size in measured.items():
        speed = size.tokens_per_second()
        ours = speed[OURS]
        cells = [name, f"{size.parameters / 1e6:.2f} M", str(size.tokens)]
        cells += [f"{speed[THEIRS]:,.0f}", f"{ours:,.0f}", f"{ours / speed[THEIRS]:.2f}"]
        cells.append(f"{size.cpu_ratio():.2f}")
        others = (PACKED, "TP2", "DP2")
        cells += [f"{speed[other]:,.0f} ({speed[other] / ours:.2f}x)" for other in others]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Time training steps against transformers.")
    parser.add_argument("--json", type=Path, help="also write every timed step")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--steps", type=int, default=9, help="timed steps of a worker")
    parser.add_argument("--rounds", type=int, default=3, help="starts of every worker")
    options = parser.parse_args()
    measured = {name: measure(name, options.steps, options.rounds) for name in options.sizes}
    print(f"{date.today()}, {describe_machine()}; training tokens/s, medians\n\n{table(measured)}")
    if options.json:
        record = {
            name: {**vars(m), "tokens/s": m.tokens_per_second()} for name, m in measured.items()
        }
        write_measurements(options.json, record)


if __name__ == "__main__":
    main()
