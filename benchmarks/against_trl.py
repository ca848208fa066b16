"""Seconds of a step of the game, here and with TRL, on this CPU in fp32.

    python -m benchmarks.against_trl --trl-python PYTHON [--games 16x8x32+64 ...] [--steps N]
        [--rows N] [--threads N] [--json FILE]

TRL's GRPO trainer gets a discriminator that learns online as its reward function, the way a user of
TRL would write the game: scores and update in one pass, the teacher's response once for a prompt.
Both sides have the same model folder, prompts, sizes and reference, and sample by themselves. They
are processes of one parent that take steps in turns, so that other work on the machine meets both.
TRL is in an environment of its own: pip install "torch==2.13.0" "trl>=1,<2".

Medians are printed, and what share of the speed of one large matrix product, measured before every
step, the training here reaches with the operations that are needed if each prompt is read once.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.game import Game
from benchmarks.machine import describe_machine, write_measurements

ROOT = Path(__file__).resolve().parents[1]
GAMES = ("16x8x32+64", "8x8x256+64", "8x8x512+32")
OURS, THEIRS = "here", "trl"
Steps = list[dict[str, Any]]


def read_size(text: str) -> Game:
    """Return the game of PROMPTSxROLLOUTSxPROMPT+RESPONSE."""
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)\+(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no game; an example is {GAMES[0]}")
    return Game(*map(int, found.groups()))


@contextmanager
def side(module: str, python: str, arguments: list[str], threads: int) -> Iterator[Any]:
    """Start one side, wait until it is ready, and yield its process."""
    process = subprocess.Popen(
        [python, "-m", f"benchmarks.{module}", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        _answer(process, module)
        yield process
    finally:
        process.kill()
        process.wait()


def ask(process: Any, module: str) -> dict[str, Any]:
    """Let a side take a step; return what it tells of it."""
    process.stdin.write("step\n")
    process.stdin.flush()
    return json.loads(_answer(process, module))


def _answer(process: Any, module: str) -> str:
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"benchmarks.{module} ended with {process.wait()}; see above")
    return line


def measure(game: Game, options: argparse.Namespace) -> dict[str, Steps]:
    """Return what both sides tell of their steps; the first, which warms up, is left out."""
    modules = {OURS: ("gad_side", sys.executable), THEIRS: ("trl_side", options.trl_python)}
    found: dict[str, Steps] = {name: [] for name in modules}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as started:
        game.save(Path(folder), num_prompts=game.prompts * (options.steps + 1))
        arguments = [folder, str(options.rows)]
        sides = {
            name: started.enter_context(side(module, python, arguments, options.threads))
            for name, (module, python) in modules.items()
        }
        for _ in range(options.steps + 1):
            for name, process in sides.items():
                step = ask(process, modules[name][0])
                print(f"{name}: {step['seconds']:.2f} s", file=sys.stderr, flush=True)
                found[name].append(step)
    return {name: steps[1:] for name, steps in found.items()}


def summary(game: Game, found: dict[str, Steps]) -> dict[str, Any]:
    """Return the medians of a game."""

    def median(name: str, key: str) -> float:
        return statistics.median(step[key] for step in found[name])

    fastest = max(step["product_speed"] for step in found[OURS])
    ours, theirs = (median(name, "seconds") for name in (OURS, THEIRS))
    phases = {
        phase: statistics.median(step["phases"][phase] for step in found[OURS])
        for phase in found[OURS][0]["phases"]
    }
    return {
        OURS: ours,
        THEIRS: theirs,
        "ratio": ours / theirs,
        "row_tokens": game.num_rows * (game.prompt_tokens + game.response_tokens),
        "tokens_trained": median(OURS, "tokens"),
        "response_tokens": median(OURS, "response_tokens"),
        "phases": phases,
        # Of the fastest product of the run: what the machine can do if nothing is in the way.
        "product_share": median(OURS, "training_speed") / fastest,
        "gflops": fastest / 1e9,
    }


def table(measured: dict[str, dict[str, Any]]) -> str:
    """Return the medians as Markdown; a ratio below 1 is in this package's favour."""
    lines = [
        "| game | seconds here | TRL | ratio | tokens of the rows | tokens trained, both models "
        "| rollout here | training here | of the speed of products |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, size in measured.items():
        phases = size["phases"]
        training = phases["student"] + phases["discriminator"]
        cells = [name, f"{size[OURS]:.2f}", f"{size[THEIRS]:.2f}", f"{size['ratio']:.2f}"]
        cells += [f"{size['row_tokens']:,}", f"{size['tokens_trained']:,.0f}"]
        cells += [f"{phases['rollout']:.2f}", f"{training:.2f}"]
        cells.append(f"{100 * size['product_share']:.0f} % of {size['gflops']:.0f} GFLOP/s")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Time the game against TRL.")
    parser.add_argument("--trl-python", default=sys.executable, help="that has TRL")
    parser.add_argument("--games", nargs="+", default=list(GAMES))
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each side")
    parser.add_argument("--rows", type=int, default=16, help="rows of a microbatch, on both sides")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write every timed step")
    options = parser.parse_args()
    measured: dict[str, dict[str, Any]] = {}
    for name in options.games:
        game = read_size(name)
        found = measure(game, options)
        measured[name] = summary(game, found) | {"steps": found}
    load = os.getloadavg()
    print(f"{date.today()}, {describe_machine()}, load {load[0]:.1f}; medians\n\n{table(measured)}")
    if options.json:
        write_measurements(options.json, measured)


if __name__ == "__main__":
    main()
