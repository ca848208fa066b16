"""Asks what two ranks agree on about run directories; started on two ranks.

``main`` takes the folder into which the results go.
"""

import shutil
from pathlib import Path

from megatron_gad.config.layout import ParallelConfig
from megatron_gad.runtime.run_folder import ask_first_rank, check_is_shared
from megatron_gad.training.checkpoint_files import LATEST, STATE, iteration_folder, latest_iteration
from megatron_gad.training.parallel import Parallel, initialize, shut_down
from tests.distributed.workers import save


def problem_with(folder: Path, place: Parallel) -> str:
    """Return what is raised, empty where nothing is."""
    try:
        check_is_shared(folder, place, patience_s=0.1)
    except ValueError as error:
        return str(error)
    return ""


def resume_points(own: Path, place: Parallel) -> tuple[int | None, str]:
    """Let only the first rank's folder hold a checkpoint, then a marker that names none."""
    iteration_folder(own, 7).mkdir()
    (iteration_folder(own, 7) / STATE).touch()
    if place.is_writer:
        (own / LATEST).write_text("7")
    found = ask_first_rank(place, lambda: latest_iteration(own))
    if place.is_writer:
        shutil.rmtree(iteration_folder(own, 7))
    try:
        ask_first_rank(place, lambda: latest_iteration(own))
    except ValueError as error:
        return found, str(error)
    return found, ""


def main(folder: Path) -> None:
    """Write down what every rank saw."""
    place = initialize(ParallelConfig(), seed=0)
    own = folder / f"own_{place.rank}"
    mine: dict = {
        "shared": problem_with(folder / "shared", place),
        "unshared": problem_with(own, place),
    }
    own.mkdir(exist_ok=True)
    mine["found"], mine["refused"] = resume_points(own, place)
    save(folder / "results.pt", place.gather_over_world(mine))
    shut_down()
