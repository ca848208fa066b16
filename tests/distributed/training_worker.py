"""Trains at every layout and moves checkpoints between them; started on four ranks.

``main`` takes the folder with the Hugging Face folders, into which the results go, and the names
of the layouts.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed import barrier, destroy_process_group

from megatron_gad.config.layout import ParallelConfig
from megatron_gad.training.checkpoint import (
    Residents,
    load_model,
    load_snapshot,
    save_checkpoint,
)
from megatron_gad.training.checkpoint_files import (
    iteration_folder,
)
from megatron_gad.training.optimizer import torch_optimizers
from megatron_gad.training.parallel import Parallel, initialize
from megatron_gad.training.trainer import Trainer
from megatron_gad.training.vocab_parallel import response_logprobs, vocab_shard
from tests.distributed.training_cases import (
    BF16,
    CASES,
    LAYOUTS,
    OPTIMIZER,
    RESUMED,
    cases_of,
    compute_of,
    run_case,
    share_of,
)
from tests.distributed.workers import drop_groups, save
from tests.tiny_training import parameters, under_hf_names, weights

STUDENT, DISCRIMINATOR = "policy-tied", "bradley-terry"


def start(layout: ParallelConfig) -> Parallel:
    """Make the process groups of a layout in place of those before."""
    drop_groups()
    return initialize(layout, seed=0)


def run_layouts(folder: Path, names: Sequence[str]) -> None:
    """Train every case at every layout."""
    for layout_name in names:
        place = start(LAYOUTS[layout_name])
        save(folder / f"place-{layout_name}.pt", describe(place))
        for case in cases_of(layout_name):
            trained = run_case(case, folder, layout_name, place)
            save(folder / f"{case}-{layout_name}.pt", trained)


def describe(place: Parallel) -> list[dict[str, Any]]:
    """What each rank gets from the methods of Parallel."""
    mine = {
        "data_rank": place.data_rank,
        "is_engine_rank": place.is_engine_rank,
        "is_last_stage": place.is_last_stage,
        "is_writer": place.is_writer,
        "share": place.share(list(range(8))),
        "engine_rank": place.from_engine_rank(place.rank if place.is_engine_rank else None),
        "last_stage": place.from_last_stage(place.rank if place.is_last_stage else None),
        "data": place.gather_over_data(place.data_rank),
        "sum": place.sum_over_data(torch.tensor([1.0, place.data_rank])).tolist(),
        "max": place.max_over_data(float(place.data_rank)),
        "broken_max": place.max_over_data(math.nan if place.data_rank == 0 else 1.0),
        "mean": place.mean_over_data(
            {"a": (float(place.data_rank), 1.0 + place.data_rank), "b": (0.0, 0.0)}
        ),
    }
    return place.gather_over_world(mine)


def run_vocabulary_shards(folder: Path) -> None:
    """Logprobs over four shards, of which the last of five columns has padding alone."""
    inputs = torch.load(folder / "vocabulary.pt")
    place = start(ParallelConfig(tensor_model_parallel_size=4))
    results = {}
    for vocab_size in (5, 6, 8):
        weight = inputs["weight"].clone()
        weight[vocab_size:] = float("nan")
        mine = weight.chunk(4)[place.rank].clone().requires_grad_()
        hidden = inputs["hidden"].clone().requires_grad_()
        logprobs, entropy = response_logprobs(
            hidden,
            mine,
            inputs["tokens"] % vocab_size,
            inputs["response_mask"],
            vocab_shard(len(mine), vocab_size),
            temperature=0.8,
            chunk_size=3,
        )
        (logprobs * inputs["upstream"]).sum().backward()
        assert mine.grad is not None and hidden.grad is not None
        d_weight = torch.cat(place.gather_over_world(mine.grad))
        results[vocab_size] = (logprobs.detach(), entropy, hidden.grad, d_weight)
    save(folder / "vocabulary-sharded.pt", results)


class Pair:
    """A student with a reference, and a discriminator."""

    def __init__(self, folder: Path, layout_name: str) -> None:
        layout = LAYOUTS[layout_name.removesuffix(BF16)]
        compute = compute_of(layout_name)
        self.place = place = start(layout)
        self.trainers: dict[str, Trainer] = {}
        for name in (STUDENT, DISCRIMINATOR):
            case = CASES[name]
            trainer = case.make(folder / case.folder, place, layout, compute, **OPTIMIZER)
            self.trainers[name] = trainer
        self.reference = self.trainers[STUDENT].snapshot()

    def steps(self, count: int) -> list[dict[str, float]]:
        """Train both; returns the metrics."""
        metrics = []
        for _ in range(count):
            for name, trainer in self.trainers.items():
                part = share_of(CASES[name].batch(), self.place)
                metrics.append(CASES[name].step(trainer, part).metrics)
        return metrics

    def save(self, folder: Path) -> None:
        """Write a checkpoint as iteration 2."""
        snapshots = {"reference": (self.trainers[STUDENT], self.reference)}
        save_checkpoint(folder, 2, Residents(self.trainers, snapshots), {}, self.place, 0)

    def load(self, folder: Path) -> None:
        """Go on from it."""
        source = iteration_folder(folder, 2)
        for name, trainer in self.trainers.items():
            load_model(source / name, trainer)
        self.reference = load_snapshot(source / "reference", self.trainers[STUDENT])

    def everything(self) -> dict[str, dict[str, torch.Tensor]]:
        """All weights by their names, and the moments where ranks have whole ones."""
        found = {}
        for name, trainer in self.trainers.items():
            found[name] = weights(trainer)
            if trainer.settings.layout.use_distributed_optimizer:
                continue
            state = torch_optimizers(trainer.optimizer_to_write())[0].state
            for moment in ("exp_avg", "exp_avg_sq"):
                mains = [getattr(p, "main_param", p) for p in parameters(trainer)]
                values = [state[main][moment] for main in mains]
                found[f"{name}-{moment}"] = under_hf_names(trainer, values)
        found["reference"] = under_hf_names(self.trainers[STUDENT], self.reference)
        return found


def run_checkpoints(folder: Path) -> None:
    """Save at one layout; go on there, in new trainers there, and at other layouts."""
    for saved_at, loaded_at in RESUMED.items():
        run = folder / f"run-{saved_at}"
        pair = Pair(folder, saved_at)
        pair.steps(2)
        pair.save(run)
        results: dict[str, Any] = {}
        at_save = pair.everything()
        results["uninterrupted"] = (at_save, pair.steps(2), pair.everything())
        for name in (saved_at, *loaded_at):
            resumed = Pair(folder, name)
            resumed.load(run)
            loaded = resumed.everything()
            results[name] = (loaded, resumed.steps(2), resumed.everything())
        save(folder / f"checkpoints-{saved_at}.pt", results)


def main(folder: Path, names: Sequence[str]) -> None:
    """Run everything."""
    torch.distributed.init_process_group("gloo")
    run_vocabulary_shards(folder)
    run_layouts(folder, names)
    run_checkpoints(folder)
    barrier()
    destroy_process_group()
