"""Moves checkpoints between layouts and numbers of ranks, for test_resharding.py.

A checkpoint is loaded at a layout and saved again from there, so that its tensors can be compared.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed import barrier, destroy_process_group, is_initialized

from megatron_gad.config.layout import ParallelConfig
from megatron_gad.training.checkpoint import (
    Residents,
    begin_checkpoint,
    load_model,
    save_checkpoint,
)
from megatron_gad.training.checkpoint_files import iteration_folder
from megatron_gad.training.parallel import initialize
from megatron_gad.training.trainer import Trainer
from tests.distributed.training_cases import CASES, OPTIMIZER, TWO_ROWS, share_of
from tests.distributed.workers import drop_groups, save
from tests.memory import NewNumbers
from tests.tiny_training import weights

# Names of both the models and their folders in a checkpoint.
MODELS = {"student": "policy-tied", "discriminator": "bradley-terry"}
PP4 = ParallelConfig(pipeline_model_parallel_size=4)
TP4 = ParallelConfig(tensor_model_parallel_size=4)
TP2_PP2 = ParallelConfig(
    tensor_model_parallel_size=2, sequence_parallel=True, pipeline_model_parallel_size=2
)
# What is left of the ranks is data parallel.
LAYOUTS = {
    "one": ParallelConfig(),
    "tp4": TP4,
    "pp4": PP4,
    "dp4": ParallelConfig(),
    "tp2-pp2": TP2_PP2,
    "tp2-pp2-vpp2-dp2": replace(TP2_PP2, virtual_pipeline_model_parallel_size=2),
}
STEPS = 2


class Run:
    """A student and a discriminator at one layout."""

    def __init__(self, folder: Path, layout_name: str, distributed: bool) -> None:
        if is_initialized():
            drop_groups()
        layout = replace(LAYOUTS[layout_name], use_distributed_optimizer=distributed)
        self.place = initialize(layout, seed=0)
        self.trainers: dict[str, Trainer] = {
            name: CASES[case].make(
                folder / CASES[case].folder, self.place, layout, TWO_ROWS, **OPTIMIZER
            )
            for name, case in MODELS.items()
        }

    def steps(self) -> list[dict[str, float]]:
        """Train both; returns the metrics."""
        metrics = []
        for _ in range(STEPS):
            for name, trainer in self.trainers.items():
                case = CASES[MODELS[name]]
                metrics.append(case.step(trainer, share_of(case.batch(), self.place)).metrics)
        return metrics

    def save(self, run_folder: Path) -> None:
        """Write a checkpoint as iteration 1."""
        save_checkpoint(run_folder, 1, Residents(self.trainers), {}, self.place, 0)

    def load(self, run_folder: Path) -> None:
        """Go on from it."""
        for name, trainer in self.trainers.items():
            load_model(iteration_folder(run_folder, 1) / name, trainer)

    def results(self) -> Any:
        """What further steps give, and the weights after them."""
        metrics = self.steps()
        return metrics, {name: weights(trainer) for name, trainer in self.trainers.items()}


def begin(folder: Path, layout_name: str, distributed: bool, run_folder: str) -> None:
    """Train from the folders' weights, save, and train on."""
    torch.distributed.init_process_group("gloo")
    run = Run(folder, layout_name, distributed)
    run.steps()
    run.save(folder / run_folder)
    # The same once more, while the models train on.
    unpublished = begin_checkpoint(
        folder / f"{run_folder}-background", 1, Residents(run.trainers), {}, run.place, 0
    )
    save(folder / f"{run_folder}.pt", run.results())
    unpublished.publish(run.place)
    barrier()
    destroy_process_group()


def move(folder: Path, distributed: bool, source: str, layout_names: tuple[str, ...]) -> None:
    """Load a checkpoint at other layouts, and save it from there."""
    if layout_names != ("one",):
        torch.distributed.init_process_group("gloo")
    for name in layout_names:
        run = Run(folder, name, distributed)
        run.load(folder / source)
        run.save(folder / f"{source}-{name}")
    barrier()
    destroy_process_group()


def come_back(
    folder: Path, layout_name: str, distributed: bool, source: str, names: tuple[str, ...]
) -> None:
    """Go on from what was moved, at the layout that it began at."""
    torch.distributed.init_process_group("gloo")
    for name in names:
        run = Run(folder, layout_name, distributed)
        run.load(folder / f"{source}-{name}")
        save(folder / f"{source}-{name}.pt", run.results())
    barrier()
    destroy_process_group()


def read_and_write(folder: Path) -> None:
    """Save and load a larger model on four data ranks.

    Notes how many bytes each rank read, and how many of numbers it made to save them.
    """
    torch.distributed.init_process_group("gloo")
    for distributed in (False, True):
        drop_groups()
        layout = ParallelConfig(use_distributed_optimizer=distributed)
        place = initialize(layout, seed=0)
        case = CASES["policy-tied"]
        trainer = case.make(folder / "larger", place, layout, TWO_ROWS, **OPTIMIZER)
        case.step(trainer, share_of(case.batch(), place))
        run_folder, residents = folder / f"bytes-{distributed}", Residents({"student": trainer})
        with NewNumbers() as made:
            save_checkpoint(run_folder, 1, residents, {}, place, keep_last=0)
        before = bytes_read()
        load_model(iteration_folder(run_folder, 1) / "student", trainer)
        counts = place.gather_over_world((bytes_read() - before, made.num_bytes))
        save(folder / f"bytes-{distributed}.pt", [*zip(*counts, strict=True)])
    barrier()
    destroy_process_group()


def bytes_read() -> int:
    """Bytes that this process asked files for so far, from Linux."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])
