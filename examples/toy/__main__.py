"""Run the toy, print a table and write the figure: python -m examples.toy [--case E]."""

import argparse
from pathlib import Path

import torch

from examples.toy.figure import write_figure
from examples.toy.mixture import CASES
from examples.toy.play import Outcome, play_case


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m examples.toy", description=__doc__)
    parser.add_argument("--case", choices=sorted(CASES), help="one teacher; default: all of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/toy"), help="folder of toy.png")
    arguments = parser.parse_args()
    names = [arguments.case] if arguments.case else sorted(CASES)
    # The tensors have ten entries: more threads only wait for each other.
    torch.set_num_threads(1)
    outcomes = {name: play_case(CASES[name], arguments.seed) for name in names}
    for name, outcome in outcomes.items():
        print(table(name, outcome))
    path = arguments.out / "toy.png"
    write_figure(outcomes, path)
    print(f"figure: {path}")


def table(name: str, outcome: Outcome) -> str:
    """Return the numbers of one case as lines of text."""
    lines = [f"case {name:<14} reverse KL, nats   largest probability"]
    peak = outcome.seqkd_logprobs.exp().max().item()
    lines.append(f"  {'SeqKD (start)':<17} {outcome.start_kl:16.3f} {peak:21.2f}")
    for label, trace in {"exact descent": outcome.exact, **outcome.games}.items():
        peak = trace.logprobs.exp().max().item()
        lines.append(f"  {label:<17} {trace.end_kl:16.3f} {peak:21.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
