"""Times training steps of one size at one layout; started by ``cpu_step``, on one rank or on two.

Arguments: size, layout, model folder, steps to time, file for the results.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from megatron_gad.cpu_seam import install_if_needed

install_if_needed()

# isort: split
from benchmarks.cpu_sizes import SIZES
from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.config.models import OptimizerConfig, StudentConfig
from megatron_gad.data.batching import take_rows
from megatron_gad.models.families import load_hf_config
from megatron_gad.training.parallel import Parallel, initialize, shut_down
from megatron_gad.training.trainer import Trainer, TrainerSettings
from megatron_gad.types import Batch

OURS, PACKED, THEIRS = "trainer", "packed", "transformers"
LEARNING_RATE, WEIGHT_DECAY, CLIP = 1e-4, 0.01, 1.0
LAYOUTS = {"one": (1, 1), "TP2": (2, 2), "DP2": (2, 1)}  # ranks, tensor parallel size

Step = Callable[[], float]


def trainer_step(
    folder: Path, place: Parallel, layout: ParallelConfig, batch: Batch, is_packed: bool = False
) -> Step:
    """Return a step of the Trainer, which returns its loss; the rows are all as long."""
    config = StudentConfig(lr=LEARNING_RATE)
    optimizer = OptimizerConfig(weight_decay=WEIGHT_DECAY, clip_grad=CLIP)
    compute = ComputeConfig(micro_batch_size=len(batch.lengths), pack_sequences=is_packed)
    settings = TrainerSettings(layout, compute, seed=0, optimizer=optimizer)
    trainer = Trainer.language_model(load_hf_config(folder), config, place, settings)
    trainer.load_hf_weights(folder)
    mine = take_rows(batch, place.share(list(range(len(batch.lengths)))))
    return lambda: trainer.train(mine, supervised_loss).metrics["loss"]


def transformers_step(folder: Path, batch: Batch) -> Step:
    """Return the same step with transformers and torch alone."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=False, dtype=torch.float32
    )
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    labels = torch.where(batch.response_mask, batch.tokens, -100)

    def step() -> float:
        optimizer.zero_grad()
        loss = model(batch.tokens, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    return step


def time_steps(steps: dict[str, Step], count: int) -> dict[str, dict[str, list[float]]]:
    """Return seconds and losses of steps that take turns, so that noise meets all alike.

    ``cpu_seconds`` is the time that this process computed: on a machine with other work it tells
    two single processes apart where ``seconds``, by the clock, cannot.
    """
    results = {name: {"seconds": [], "cpu_seconds": [], "losses": []} for name in steps}
    for number in range(count + 1):
        for name, step in steps.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            loss = step()
            if number > 0:  # the first makes the optimizer's states
                results[name]["seconds"].append(time.perf_counter() - start)
                results[name]["cpu_seconds"].append(time.process_time() - cpu_start)
            results[name]["losses"].append(loss)
    return results


def main() -> None:
    """Time and write the results, on rank 0."""
    size_name, layout_name, folder, count, out = sys.argv[1:]
    batch = SIZES[size_name].batch()
    layout = ParallelConfig(tensor_model_parallel_size=LAYOUTS[layout_name][1])
    place = initialize(layout, seed=0)
    makers: dict[str, Callable[[], Step]] = {
        OURS: partial(trainer_step, Path(folder), place, layout, batch)
    }
    if layout_name == "one":
        makers[PACKED] = partial(trainer_step, Path(folder), place, layout, batch, is_packed=True)
        makers[THEIRS] = partial(transformers_step, Path(folder), batch)
    results = time_steps({name: make() for name, make in makers.items()}, int(count))
    if place.is_writer:
        Path(out).write_text(json.dumps(results))
    shut_down()


if __name__ == "__main__":
    main()
