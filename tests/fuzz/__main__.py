"""Give the command thousands of bad inputs: ``make fuzz``. None may be met by a traceback.

Exit status 0 if each was taken, or refused with a message.
"""

import logging
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro

from megatron_gad.cpu_seam import install_if_needed

install_if_needed()

from tests.fuzz import checkpoints, configurations, data_files, model_folders, run_folders  # noqa: E402

KINDS: dict[str, tuple[Callable[[int, Path], str], int]] = {
    "configurations": (configurations.problem, 2000),
    "data_files": (data_files.problem, 400),
    "run_folders": (run_folders.problem, 130),
    "checkpoints": (checkpoints.problem, 115),
    "model_folders": (model_folders.problem, 130),
}


@dataclass(frozen=True)
class Fuzz:
    """What is tried.

    Attributes:
        kinds: of inputs.
        first: number of the first input, which is its seed.
        count: how many of each kind; None: as many as were agreed on for it.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    first: int = 0
    count: int | None = None


def problems(fuzz: Fuzz, folder: Path) -> list[str]:
    """Return what is wrong, by input."""
    found: list[str] = []
    for kind in fuzz.kinds:
        try_one, count = KINDS[kind]
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(fuzz.first, fuzz.first + (fuzz.count or count)):
            problem = try_one(number, folder / kind)
            if problem:
                found.append(problem)
                logging.getLogger(__name__).error("%s\n", problem)
    return found


def main(fuzz: Fuzz) -> int:
    """Try all, and say how many were met badly."""
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        found = problems(fuzz, Path(folder))
    print(f"{len(found)} inputs were met badly")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Fuzz)))
