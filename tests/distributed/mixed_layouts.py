"""Student and discriminator in layouts of their own, on four ranks: for test_mixed_layouts.py."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_gad.algorithms.policy import PolicyOptions, policy_loss
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.data.chat import ChatCodec
from megatron_gad.engines.base import SamplingConfig
from megatron_gad.stages.discriminator_step import judge
from megatron_gad.stages.token_values import Tokens, read_tokens
from megatron_gad.training.exchange import Moved, move
from megatron_gad.training.forward_backward import StepOutput
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.trainer import Trainer
from megatron_gad.types import Group, Prompt, Rollout
from tests.tiny_training import (
    GROUP_SIZE,
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
NUM_GROUPS = 4
ROWS_OF_GROUP = 1 + GROUP_SIZE
TWO_ROWS = ComputeConfig(micro_batch_size=2)
OPTIMIZER = {"lr": 1e-3, "clip_grad": 0.2, "weight_decay": 0.1}

TP2 = ParallelConfig(tensor_model_parallel_size=2)
TP2_SP = ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)
PP2 = ParallelConfig(pipeline_model_parallel_size=2)
TP2_PP2 = ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2)
# (the student's, the discriminator's); what is left of the four ranks is data parallel.
LAYOUTS = {
    "tp2, tp1": (TP2, ParallelConfig()),
    "pp2, tp2": (PP2, TP2_SP),
    "dp4, tp2-pp2": (ParallelConfig(), TP2_PP2),
    "tp2-pp2, pp2": (TP2_PP2, PP2),
    "pp4, tp1": (ParallelConfig(pipeline_model_parallel_size=4), ParallelConfig()),
}
# Of items or groups to exchange, so that none of the layouts has them in their order.
COSTS = (6, 9, 3, 1, 2, 3)
# To sample, and under which name.
PROMPTS = [
    Prompt(index, ({"role": "user", "content": "?"},), "!", (3, 4 + index), (6,))
    for index in (5, 0, 9, 2)
]
SAMPLING = SamplingConfig(num_samples=2, name="step_0000003_0")
SHOWN = 2  # which of the prompts


def group_of(prompt: Prompt) -> Group:
    """Two responses, one of which names the prompt's row."""
    responses = ((40, 60 + prompt.index), (70,))
    rollouts = (Rollout(ids, (-0.5,) * len(ids), "stop", 7, text_ids=ids) for ids in responses)
    return Group(prompt, tuple(rollouts))


@dataclass(frozen=True)
class Learned:
    """What a step left behind, the same on all ranks.

    scores: [groups, 1 + G] from before the update. gradients: both models' in one.
    """

    metrics: dict[str, float]
    scores: Tensor
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]


class Pair:
    """A student of a folder, and a discriminator that begins with the student's weights."""

    def __init__(
        self,
        folder: Path,
        layouts: tuple[ParallelConfig, ParallelConfig],
        places: tuple[Parallel, Parallel],
    ) -> None:
        options: dict[str, Any] = OPTIMIZER
        self.student = make_student(folder, places[0], layouts[0], TWO_ROWS, **options)
        self.discriminator = make_discriminator(folder, places[1], layouts[1], TWO_ROWS, **options)
        # Other weights than the folder's, so that only the student can have brought them.
        for parameter in self._parameters():
            parameter.data.mul_(1.25)
        self.discriminator.load_hf_weights(self.student.hf_weights())

    def step(self) -> Learned:
        """Let the discriminator score and learn, and the student learn from the scores."""
        place = self.student.parallel
        own = place.share(list(range(NUM_GROUPS)))
        moved = move(own, COSTS.__getitem__, place, self.discriminator.parallel)
        judged = self._judge(moved)
        scores = moved.back(judged.rows).view(-1, ROWS_OF_GROUP)
        all_scores = torch.cat(place.gather_over_data(scores))
        # Two rows of the student's for every group, moved by two of its scores.
        first = 2 * NUM_GROUPS // place.data_size * place.data_rank
        rows = slice(first, first + 2 * len(scores))
        batch = rows_of(student_batch(VOCAB_SIZE), rows).with_advantages(scores[:, 1:3].flatten())
        loss = partial(policy_loss, options=PolicyOptions(kl_coef=0.1))
        learned = self.student.train(batch, loss, temperature=0.8)
        models = {"student": self.student, "discriminator": self.discriminator}
        outputs = {"student": learned.metrics, "discriminator": judged.metrics}
        return Learned(
            {f"{name}/{key}": x for name, found in outputs.items() for key, x in found.items()},
            all_scores,
            _named({name: gradients(trainer) for name, trainer in models.items()}),
            _named({name: weights(trainer) for name, trainer in models.items()}),
        )

    def tokens(self, codec: ChatCodec) -> list[dict[int, list[Tokens]]]:
        """What every rank is told of the one group that is shown, which one data rank has."""
        place = self.student.parallel
        own = place.share(list(range(NUM_GROUPS)))
        moved = move(own, COSTS.__getitem__, place, self.discriminator.parallel)
        groups = [group_of(PROMPTS[number]) for number in moved.items]
        is_shown = [number == SHOWN for number in moved.items]
        return place.gather_over_world(read_tokens(self.discriminator, codec, groups, is_shown))

    def _judge(self, moved: Moved[int]) -> StepOutput:
        groups = pair_rows(VOCAB_SIZE, num_trained=2, rows=PAIR_ROWS * 2)
        rows = [
            group * ROWS_OF_GROUP + row for group in moved.items for row in range(ROWS_OF_GROUP)
        ]
        return judge(
            self.discriminator, rows_of(groups, rows), kind="bradley_terry", split_groups=False
        )

    def _parameters(self) -> list[Any]:
        trainer: Trainer = self.student
        return [
            parameter for chunk in trainer.modules_to_read() for parameter in chunk.parameters()
        ]


def _named(models: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{model}/{name}": x for model, found in models.items() for name, x in found.items()}
