"""SeqKD, GAD and exact descent on the toy, with the loss functions of the product.

A row has two tokens: one that stands for the prompt, and the response, which is the class.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from examples.toy.mixture import (
    NUM_CLASSES,
    Case,
    gaussian_logprobs,
    kl_divergence,
    teacher_logprobs,
)
from megatron_gad.algorithms.advantages import group_advantages
from megatron_gad.algorithms.discriminator import discriminator_loss, split_scores
from megatron_gad.algorithms.policy import PolicyOptions, policy_loss
from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.types import Batch, LanguageOutput, Loss, PairBatch, ScorerOutput

NUM_STEPS = 1500
NUM_SEQKD_STEPS = 1000
NUM_WARMUP_STEPS = 300
NUM_PROMPTS = 64
GROUP_SIZE = 8
STUDENT_RATE = 0.01
# The game moves around its end point; what is reported is the mean over this many last steps.
NUM_END_STEPS = 300
# Broad, and in the middle of the classes: (mean, log std).
UNTRAINED_STUDENT = (4.5, 1.0)

toy_policy_loss = partial(policy_loss, options=PolicyOptions(kl_coef=0.0))


@dataclass(frozen=True)
class Game:
    """Learning rates (Adam) of the two players in the adversarial stage.

    is_frozen: the discriminator learns in the warm-up and then no more.
    """

    student_rate: float
    discriminator_rate: float
    is_frozen: bool = False


GAMES = {
    "GAD": Game(STUDENT_RATE, 0.05),
    "equal rates": Game(STUDENT_RATE, STUDENT_RATE),
    "frozen D": Game(STUDENT_RATE, 0.05, is_frozen=True),
}


@dataclass(frozen=True)
class Trace:
    """Where a student went.

    logprobs: [10] float32, at the end.
    reverse_kl: [steps] float32, KL(student || teacher) in nats before each step.
    """

    logprobs: Tensor
    reverse_kl: Tensor

    @property
    def end_kl(self) -> float:
        """The reverse KL at the end, in nats, as a mean over the last steps."""
        return self.reverse_kl[-NUM_END_STEPS:].mean().item()


@dataclass(frozen=True)
class Outcome:
    """All runs on one teacher.

    teacher_logprobs, seqkd_logprobs: [10] float32. exact: descent of the reverse KL itself.
    games: by the names of ``GAMES``. All but the teacher start from the SeqKD student.
    """

    teacher_logprobs: Tensor
    seqkd_logprobs: Tensor
    exact: Trace
    games: dict[str, Trace]

    @property
    def start_kl(self) -> float:
        """The reverse KL of the SeqKD student, in nats."""
        return kl_divergence(self.seqkd_logprobs, self.teacher_logprobs).item()


class Players:
    """The same first parameters once per learning rate, each with an Adam optimizer of its own.

    They learn side by side in one batch, which is faster than one after the other, and do not
    touch each other. N is their number.
    """

    def __init__(self, params: Tensor, rates: list[float]) -> None:
        self._params = [params.clone().requires_grad_() for _ in rates]
        self._optimizer = torch.optim.Adam(
            [{"params": [own], "lr": rate} for own, rate in zip(self._params, rates, strict=True)]
        )

    def params(self) -> Tensor:
        """Return the parameters of all players, [N, ...], with gradient."""
        return torch.stack(self._params)

    def freeze(self, player: int) -> None:
        """Keep the parameters of one player as they are from now on."""
        self._optimizer.param_groups[player]["lr"] = 0.0

    def descend(self, loss: Loss) -> None:
        """Take one step down the mean loss; every player has the same number of rows in it."""
        self._optimizer.zero_grad()
        (len(self._params) * loss.total / loss.count).backward()
        self._optimizer.step()


def student_logprobs(params: Tensor) -> Tensor:
    """Return the student's log-probabilities, [..., 10], from its (mean, log std), [..., 2]."""
    return gaussian_logprobs(params[..., 0], params[..., 1])


def play_case(case: Case, seed: int) -> Outcome:
    """Run SeqKD, exact descent and every game on one teacher; the same seed, the same numbers."""
    teacher = teacher_logprobs(case)
    params = train_seqkd(teacher, seed)
    traces = play_gad(teacher, params, list(GAMES.values()), seed)
    return Outcome(
        teacher_logprobs=teacher,
        seqkd_logprobs=student_logprobs(params),
        exact=descend_exactly(teacher, params),
        games=dict(zip(GAMES, traces, strict=True)),
    )


def train_seqkd(teacher: Tensor, seed: int) -> Tensor:
    """Return the student's parameters, [2], after cross-entropy on samples of the teacher.

    teacher: [10] float32 log-probabilities, here and below.
    """
    generator = torch.Generator().manual_seed(seed)
    student = Players(torch.tensor(UNTRAINED_STUDENT), [STUDENT_RATE])
    for _ in range(NUM_SEQKD_STEPS):
        classes = sample_classes(teacher[None], NUM_PROMPTS * GROUP_SIZE, generator)
        output = student_output(student_logprobs(student.params()), classes)
        student.descend(supervised_loss(output, rows_of(classes.flatten())))
    return student.params()[0].detach()


def descend_exactly(teacher: Tensor, params: Tensor) -> Trace:
    """Minimise KL(student || teacher) itself from params, [2]: what GAD has to do from samples."""
    student = Players(params, [STUDENT_RATE])
    reverse_kl: list[Tensor] = []
    for _ in range(NUM_STEPS):
        divergence = kl_divergence(student_logprobs(student.params()[0]), teacher)
        reverse_kl.append(divergence.detach())
        student.descend(Loss(divergence, torch.tensor(1.0)))
    return Trace(student_logprobs(student.params()[0].detach()), torch.stack(reverse_kl))


def play_gad(teacher: Tensor, params: Tensor, games: list[Game], seed: int) -> list[Trace]:
    """Play N games from the student params, [2]: warm the discriminators up, then let both learn.

    A discriminator is a table of ten scores. The teacher is seen through samples alone; its
    log-probabilities serve to draw them and to measure the reverse KL.
    """
    generator = torch.Generator().manual_seed(seed)
    students = Players(params, [game.student_rate for game in games])
    tables = Players(torch.zeros(NUM_CLASSES), [game.discriminator_rate for game in games])
    reverse_kl: list[Tensor] = []
    for step in range(-NUM_WARMUP_STEPS, NUM_STEPS):
        if step == 0:
            _freeze_chosen(tables, games)
        logprobs = student_logprobs(students.params())
        responses = sample_classes(logprobs.detach(), NUM_PROMPTS * GROUP_SIZE, generator)
        taught = sample_classes(teacher.expand_as(logprobs), NUM_PROMPTS, generator)

        pairs = pairs_of(taught.flatten(), responses.flatten())
        classes = pairs.tokens[:, 1].view(len(games), -1)
        judged = ScorerOutput(tables.params().gather(1, classes).flatten())
        _, rewards = split_scores(judged.scores.detach(), GROUP_SIZE)
        tables.descend(discriminator_loss(judged, pairs, "bradley_terry"))
        if step < 0:
            continue
        reverse_kl.append(kl_divergence(logprobs.detach(), teacher))
        advantages = group_advantages(rewards, "grpo").flatten()
        batch = rows_of(responses.flatten()).with_advantages(advantages)
        students.descend(toy_policy_loss(student_output(logprobs, responses), batch))
    ends = student_logprobs(students.params().detach())
    return [Trace(*pair) for pair in zip(ends, torch.stack(reverse_kl, dim=1), strict=True)]


def _freeze_chosen(tables: Players, games: list[Game]) -> None:
    for player, game in enumerate(games):
        if game.is_frozen:
            tables.freeze(player)


def sample_classes(logprobs: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw classes, [N, count], from log-probabilities, [N, 10]."""
    return torch.multinomial(logprobs.exp(), count, replacement=True, generator=generator)


def student_output(logprobs: Tensor, classes: Tensor) -> LanguageOutput:
    """Return what a trainer would hand to a loss, for N * M rows.

    logprobs: [N, 10] of the students. classes: [N, M], their responses.
    """
    taken = logprobs.gather(1, classes).flatten()
    entropies = -(logprobs.exp() * logprobs).sum(dim=1, keepdim=True).detach()
    prompt = torch.zeros_like(taken)
    return LanguageOutput(
        logprobs=torch.stack([prompt, taken], dim=1),
        entropy=torch.stack([prompt, entropies.expand(classes.shape).flatten()], dim=1),
    )


def rows_of(classes: Tensor) -> Batch:
    """Return rows of a prompt token and a class, from [B] classes."""
    tokens = torch.stack([torch.zeros_like(classes), classes], dim=1)
    is_response = torch.tensor([False, True]).expand(tokens.shape)
    return Batch(tokens, torch.full_like(classes, 2), is_response)


def pairs_of(teacher_responses: Tensor, responses: Tensor) -> PairBatch:
    """Return groups of a teacher's response and G of a student, from [P] and [P * G] classes."""
    size = len(responses) // len(teacher_responses)
    groups = torch.cat([teacher_responses[:, None], responses.view(-1, size)], dim=1)
    rows = rows_of(groups.flatten())
    is_trained = torch.ones(rows.tokens.shape[0], dtype=torch.bool)
    return PairBatch(rows.tokens, rows.lengths, rows.response_mask, is_trained, size)
