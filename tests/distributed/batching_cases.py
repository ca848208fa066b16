"""What test_batching.py trains on one rank, and its worker on two with uneven shares."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_gad.algorithms.advantages import group_advantages
from megatron_gad.algorithms.discriminator import split_scores
from megatron_gad.algorithms.policy import PolicyOptions, policy_loss
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.data.balance import group_cost
from megatron_gad.data.batching import pair_batch, policy_batch
from megatron_gad.stages.discriminator_step import judge
from megatron_gad.training.exchange import rebalance
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.trainer import Trainer
from megatron_gad.types import Batch, Group, PairBatch, Prompt, Rollout
from tests.tiny_training import (
    GROUP_SIZE,
    PAIR_ROWS,
    gradients,
    make_discriminator,
    make_student,
    pair_rows,
    student_batch,
)

V = 97
POLICY = partial(policy_loss, options=PolicyOptions(kl_coef=0.1))


@dataclass(frozen=True)
class Case:
    """One way to bound microbatches.

    unit: rows that stay together. step: trains on a data rank's part of the batch.
    """

    make: Callable[..., Trainer]
    compute: ComputeConfig
    batch: Callable[[], Batch | PairBatch]
    unit: int
    step: Callable[[Trainer, Any], Any]


STUDENT = partial(student_batch, V)
PAIRS = partial(pair_rows, V, 2, PAIR_ROWS * 2)
CASES = {
    "rows": Case(
        make_student,
        ComputeConfig(micro_batch_size=2, pack_sequences=False),
        STUDENT,
        1,
        lambda trainer, batch: trainer.train(batch, POLICY),
    ),
    "tokens": Case(
        make_student,
        ComputeConfig(max_tokens_per_microbatch=16, pack_sequences=False),
        STUDENT,
        1,
        lambda trainer, batch: trainer.train(batch, POLICY),
    ),
    "groups": Case(
        make_discriminator,
        ComputeConfig(max_tokens_per_microbatch=30, pack_sequences=True),
        PAIRS,
        1 + GROUP_SIZE,
        partial(judge, kind="bradley_terry", split_groups=False),
    ),
    "split groups": Case(
        make_discriminator,
        ComputeConfig(max_tokens_per_microbatch=16, pack_sequences=False),
        PAIRS,
        1 + GROUP_SIZE,
        partial(judge, kind="bradley_terry", split_groups=True),
    ),
}


@dataclass(frozen=True)
class Trained:
    """What a step left behind on one rank; shapes: of the tokens of every forward."""

    metrics: dict[str, float]
    rows: Tensor
    gradients: dict[str, Tensor]
    padding_share: float
    shapes: list[tuple[int, ...]]


def train(case: Case, folder: Path, place: Parallel, batch: Any) -> Trained:
    """Take one step."""
    trainer = case.make(folder / "qwen2", place, compute=case.compute)
    shapes: list[tuple[int, ...]] = []
    trainer.modules_to_read()[0].register_forward_pre_hook(
        lambda _module, arguments: shapes.append(tuple(arguments[0].shape))
    )
    output = case.step(trainer, batch)
    return Trained(
        output.metrics, output.rows, gradients(trainer), output.padding_share, list(shapes)
    )


def make_groups() -> list[Group]:
    """Four groups of three rollouts, of very different lengths."""
    generator = torch.Generator().manual_seed(4)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, V, (count,), generator=generator).tolist())

    groups = []
    for index, size in enumerate((1, 12, 2, 5)):
        prompt = Prompt(index, ({"role": "user", "content": "x"},), "y", ids(3), ids(size + 1))
        drawn = [ids(size + number) for number in range(GROUP_SIZE)]
        rollouts = [Rollout(x, (-1.0,) * len(x), "stop", 0, text_ids=x) for x in drawn]
        groups.append(Group(prompt, tuple(rollouts)))
    return groups


def train_on_groups(folder: Path, place: Parallel, own: Sequence[Group]) -> dict[str, Any]:
    """Score, learn from rewards, on an even share of all ranks' groups."""
    groups = rebalance(own, group_cost, place)
    compute = ComputeConfig(max_tokens_per_microbatch=40, pack_sequences=False)
    discriminator = make_discriminator(folder / "qwen2", place, compute=compute)
    judged = judge(discriminator, pair_batch(groups), "bradley_terry", split_groups=False)
    advantages_PG = group_advantages(split_scores(judged.rows, GROUP_SIZE)[1], "grpo")
    student = make_student(folder / "qwen2", place, compute=compute)
    learned = student.train(policy_batch(groups).with_advantages(advantages_PG.flatten()), POLICY)
    return {
        "indices": [group.prompt.index for group in groups],
        "costs": [group_cost(group) for group in groups],
        "advantages": advantages_PG,
        "metrics": {**judged.metrics, **{f"student {k}": v for k, v in learned.metrics.items()}},
        "discriminator": gradients(discriminator),
        "student": gradients(student),
    }
