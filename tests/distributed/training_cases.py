"""What test_training.py trains on one rank, and its worker on four at every layout."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_gad.algorithms.policy import PolicyOptions, policy_loss
from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.judging import judge
from megatron_gad.training.options import ComputeConfig, ParallelConfig
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.trainer import StepOutput, Trainer
from megatron_gad.types import Batch, PairBatch
from tests.tiny_training import (
    PAIR_ROWS,
    gradients,
    make_discriminator,
    make_student,
    pair_rows,
    rows_of,
    student_batch,
    weights,
)

VOCAB_SIZE = 97
POLICY = PolicyOptions(kl_coef=0.1)
# Rows two by two, of which one pair has no response token and one data rank of four nothing else.
# Their response tokens are more than one chunk.
TWO_ROWS = ComputeConfig(micro_batch_size=2, logprob_chunk_size=3)
OPTIMIZER = {"lr": 1e-3, "clip_grad": 0.2, "weight_decay": 0.1}

# What is left of the four ranks is data parallel.
LAYOUTS = {
    "pp2-vpp2-dp2": ParallelConfig(
        pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2
    ),
    "cp2-dp2": ParallelConfig(context_parallel_size=2),
    "cp4": ParallelConfig(context_parallel_size=4),
    "dp4": ParallelConfig(),
    "tp2-dp2": ParallelConfig(tensor_model_parallel_size=2),
    "tp2-sp-dp2": ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    "pp2-dp2": ParallelConfig(pipeline_model_parallel_size=2),
    "pp4": ParallelConfig(pipeline_model_parallel_size=4),
    "tp2-pp2-sp": ParallelConfig(
        tensor_model_parallel_size=2, pipeline_model_parallel_size=2, sequence_parallel=True
    ),
}


@dataclass(frozen=True)
class Case:
    """One model with a way to train it.

    folder: name of the Hugging Face folder.
    make: builds the trainer.
    batch: makes the whole batch of all data ranks.
    step: trains on a data rank's part of it.
    """

    folder: str
    make: Callable[..., Trainer]
    batch: Callable[[], Batch | PairBatch]
    step: Callable[[Trainer, Any], StepOutput]


def supervised_step(trainer: Trainer, batch: Batch) -> StepOutput:
    """Learn from given responses."""
    return trainer.train(batch, supervised_loss)


def policy_step(trainer: Trainer, batch: Batch) -> StepOutput:
    """Learn from rewards."""
    return trainer.train(batch, partial(policy_loss, options=POLICY), temperature=0.8)


def four_groups() -> PairBatch:
    """One group for each of four data ranks; two of three rollouts train."""
    return pair_rows(VOCAB_SIZE, num_trained=2, rows=PAIR_ROWS * 2)


STUDENT = partial(student_batch, VOCAB_SIZE)
CASES = {
    "supervised-llama": Case("llama", make_student, STUDENT, supervised_step),
    "policy-tied": Case("qwen2-tied", make_student, STUDENT, policy_step),
    "bradley-terry": Case(
        "qwen2-tied",
        make_discriminator,
        four_groups,
        partial(judge, kind="bradley_terry", split_groups=False),
    ),
    "cross-entropy-split": Case(
        "qwen2",
        partial(make_discriminator, score="sum"),
        four_groups,
        partial(judge, kind="cross_entropy", split_groups=True),
    ),
}


@dataclass(frozen=True)
class Trained:
    """What two steps left behind: metrics of each; rows and gradients of the first; weights."""

    metrics: list[dict[str, float]]
    rows: list[Tensor]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]


def run_case(name: str, folder: Path, layout: ParallelConfig, place: Parallel) -> Trained:
    """Train a case of the table."""
    return train_case(CASES[name], folder, layout, place)


def train_case(case: Case, folder: Path, layout: ParallelConfig, place: Parallel) -> Trained:
    """Train a case for two steps; every rank gets the whole result."""
    trainer = case.make(folder / case.folder, place, layout, TWO_ROWS, **OPTIMIZER)
    part = share_of(case.batch(), place)
    first = case.step(trainer, part)
    gradients_of_first = gradients(trainer)
    second = case.step(trainer, part)
    rows = place.gather_over_data(first.rows)
    return Trained([first.metrics, second.metrics], rows, gradients_of_first, weights(trainer))


def share_of(batch: Any, place: Parallel) -> Any:
    """This data rank's contiguous part of the rows."""
    rows = place.share(list(range(len(batch.lengths))))
    return rows_of(batch, slice(rows[0], rows[-1] + 1))
