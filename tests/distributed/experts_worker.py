"""Trains mixtures of experts at every layout, moves their checkpoints, converts; on four ranks.

``main`` takes the folder with the Hugging Face folders, into which the results go, and the names
of the layouts.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.distributed import destroy_process_group, init_process_group

from megatron_gad.config.layout import ParallelConfig
from megatron_gad.config.output import ModelName
from megatron_gad.training.checkpoint import Residents, load_model
from megatron_gad.training.checkpoint import save_checkpoint as save_run
from megatron_gad.training.checkpoint_files import (
    iteration_folder,
)
from megatron_gad.training.optimizer import torch_optimizers
from megatron_gad.training.parallel import Parallel, initialize
from megatron_gad.training.trainer import Trainer
from tests.distributed.experts_cases import CASES, LAYOUTS, RESUMED, cases_of
from tests.distributed.training_cases import OPTIMIZER, TWO_ROWS, share_of, train_case
from tests.distributed.workers import drop_groups, save
from tests.tiny_training import parameters, under_hf_names, weights
from tools.convert_checkpoint import Arguments, convert


def start(layout: ParallelConfig) -> Parallel:
    """Make the process groups of a layout in place of those before."""
    drop_groups()
    return initialize(layout, seed=0)


def run_layouts(folder: Path, names: Sequence[str]) -> None:
    """Train every case at its layouts."""
    for layout_name in names:
        layout = LAYOUTS[layout_name]
        place = start(layout)
        for name in cases_of(layout_name):
            trained = train_case(CASES[name], folder, layout, place)
            save(folder / f"{name}-{layout_name}.pt", trained)


def make(folder: Path, layout: ParallelConfig, place: Parallel) -> Trainer:
    """Build the student."""
    case = CASES["policy"]
    return case.make(folder / case.folder, place, layout, TWO_ROWS, **OPTIMIZER)


def steps(trainer: Trainer, place: Parallel) -> list[dict[str, float]]:
    """Train for two steps; returns the metrics."""
    case = CASES["policy"]
    part = share_of(case.batch(), place)
    return [case.step(trainer, part).metrics for _ in range(2)]


def everything(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    """All weights by their names, and the moments where ranks have whole ones."""
    found = {"weights": weights(trainer)}
    if trainer.settings.layout.use_distributed_optimizer:
        return found
    state = {
        p: s
        for part in torch_optimizers(trainer.optimizer_to_write())
        for p, s in part.state.items()
    }
    for moment in ("exp_avg", "exp_avg_sq"):
        values = [state[p][moment] for p in parameters(trainer)]
        found[moment] = under_hf_names(trainer, values)
    return found


def run_checkpoints(folder: Path) -> None:
    """Save at one layout; go on there, in new trainers there, and at other layouts."""
    for saved_at, loaded_at in RESUMED.items():
        run = folder / f"run-{saved_at}"
        place = start(LAYOUTS[saved_at])
        trainer = make(folder, LAYOUTS[saved_at], place)
        steps(trainer, place)
        save_run(run, 2, Residents({"student": trainer}), {}, place, 0)
        results = {"saved": (everything(trainer), steps(trainer, place), everything(trainer))}
        for name in loaded_at:
            place = start(LAYOUTS[name])
            resumed = make(folder, LAYOUTS[name], place)
            load_model(iteration_folder(run, 2) / "student", resumed)
            results[name] = (everything(resumed), steps(resumed, place), everything(resumed))
        save(folder / f"checkpoints-{saved_at}.pt", results)


def run_conversions(folder: Path) -> None:
    """Convert both kinds of model there at TP2 EP2 and back at PP2 EP2, compared each time."""
    models: dict[str, ModelName] = {"qwen3_moe": "student", "scorer": "discriminator"}
    for name, model in models.items():
        source, between, back = (folder / f"{name}{suffix}" for suffix in ("", "-between", "-back"))
        there = {"from_hf": source, "to_megatron": between, "tensor_model_parallel_size": 2}
        again = {"from_megatron": between, "to_hf": back, "pipeline_model_parallel_size": 2}
        for paths in (there, again):
            arguments = Arguments(**paths, model=model, expert_model_parallel_size=2, verify=True)
            assert convert(arguments, start(arguments.layout())) == 0, (name, paths)


def main(folder: Path, names: Sequence[str]) -> None:
    """Run everything."""
    init_process_group("gloo")
    run_layouts(folder, names)
    run_checkpoints(folder)
    run_conversions(folder)
    destroy_process_group()
