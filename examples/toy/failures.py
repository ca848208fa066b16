"""Failures that people report, made on purpose in the toy, and what cures them.

    python -m examples.toy.failures

A failure is a game with one setting wrong. A cure is one more setting; each is tried against each
failure. Case E, from the SeqKD student on.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
import tyro
from torch import Tensor

from examples.toy.mixture import CASES, NUM_CLASSES, kl_divergence, teacher_logprobs
from examples.toy.play import (
    GROUP_SIZE,
    NUM_PROMPTS,
    NUM_WARMUP_STEPS,
    Players,
    pairs_of,
    rows_of,
    sample_classes,
    student_logprobs,
    student_output,
    train_seqkd,
)
from megatron_gad.algorithms.advantages import (
    AdvantageKind,
    group_advantages,
    length_sums,
    without_length,
    zero_advantage_share,
)
from megatron_gad.algorithms.discriminator import discriminator_loss
from megatron_gad.algorithms.policy import PolicyOptions, policy_loss
from megatron_gad.types import Loss, ScorerOutput

NUM_STEPS = 800
NUM_END_STEPS = 300
CHANCE_LOSS = 0.693


@dataclass(frozen=True)
class Setting:
    """A game. Rates are those of Adam.

    discriminator_steps: for each step of the student, on fresh samples.
    pool_share: of the samples that the discriminator learns from, those of earlier students.
    kl_coef: of the KL to the student as it was at the start.
    bias: added to the score for every e-fold of a response's length, as by a discriminator that
        finds longer better. The class stands for the length: class k has k + 1 tokens.
    entropy_coef: of a bonus for the student's entropy.
    smoothing: of the labels: the share of the discriminator's loss in which the sides are swapped.
    average: decay of an average of discriminators that scores in its place.

    The last three are options of this page alone: they are here to be tried.
    """

    student_rate: float = 0.01
    discriminator_rate: float = 0.05
    is_frozen: bool = False
    discriminator_steps: int = 1
    pool_share: float = 0.0
    kl_coef: float = 0.0
    advantage: AdvantageKind = "grpo"
    group_size: int = GROUP_SIZE
    bias: float = 0.0
    corrects_length: bool = False
    entropy_coef: float = 0.0
    smoothing: float = 0.0
    average: float = 0.0


@dataclass(frozen=True)
class Ending:
    """Means over the last steps.

    reverse_kl: in nats. swing: its standard deviation. loss: Bradley-Terry, of fresh pairs.
    misled_share: of steps in which the discriminator's loss is above chance. length: of responses.
    peak: the largest probability. zero_share: of groups that teach nothing.
    """

    reverse_kl: float
    swing: float
    loss: float
    misled_share: float
    length: float
    peak: float
    zero_share: float


@dataclass(frozen=True)
class Failure:
    """A game that goes wrong, and the number that says so.

    number: of the ending. is_cured: whether it is where it should be.
    """

    title: str
    setting: Setting
    number: Callable[[Ending], float]
    is_cured: Callable[[float], bool]


FAILURES = (
    Failure(
        "D lags behind, back to chance; share of steps with a loss above ln 2",
        Setting(discriminator_rate=0.003),
        lambda end: end.misled_share,
        lambda share: share < 0.1,
    ),
    Failure(
        "equal rates oscillate; swing of the reverse KL",
        Setting(discriminator_rate=0.01),
        lambda end: end.swing,
        lambda swing: swing < 0.05,
    ),
    Failure(
        "a frozen D is hacked; reverse KL",
        Setting(is_frozen=True),
        lambda end: end.reverse_kl,
        lambda divergence: divergence < 0.4,
    ),
    Failure(
        "collapse to one answer under a frozen D; largest probability",
        Setting(is_frozen=True),
        lambda end: end.peak,
        lambda peak: peak < 0.9,
    ),
    Failure(
        "length hacking: D prefers longer; mean length (teacher 4.0)",
        Setting(bias=3.0),
        lambda end: end.length,
        lambda length: length < 4.5,
    ),
    Failure(
        "groups of 2 often have no variance; share of them",
        Setting(group_size=2),
        lambda end: end.zero_share,
        lambda share: share < 0.2,
    ),
)
CURES: dict[str, dict[str, float | bool | str]] = {
    "as it is": {},
    "D learns at .05": {"is_frozen": False, "discriminator_rate": 0.05},
    "5 steps of D": {"is_frozen": False, "discriminator_steps": 5},
    "persistent negatives": {"pool_share": 0.5},
    "KL 0.3 to the start": {"kl_coef": 0.3},
    "Dr. GRPO": {"advantage": "dr_grpo"},
    "entropy bonus .1": {"entropy_coef": 0.1},
    "labels smoothed by .1": {"smoothing": 0.1},
    "average of D at .99": {"average": 0.99},
    "length correction": {"corrects_length": True},
    "groups of 32": {"group_size": 32},
}


@cache
def seqkd_student(seed: int) -> Tensor:
    """Return the parameters that all games of a seed start from, [2] float32."""
    return train_seqkd(teacher_logprobs(CASES["E"]), seed)


@cache
def play(setting: Setting, seed: int) -> Ending:
    """Play one game from the SeqKD student; the same seed gives the same numbers."""
    teacher, start = teacher_logprobs(CASES["E"]), seqkd_student(seed)
    generator = torch.Generator().manual_seed(seed)
    student = Players(start, [setting.student_rate])
    table = Players(torch.zeros(NUM_CLASSES), [setting.discriminator_rate])
    game = _Game(setting, teacher, student, table, student_logprobs(start[None]), generator)
    for _ in range(NUM_WARMUP_STEPS):
        game.teach()
    ends = [game.step() for _ in range(NUM_STEPS)][-NUM_END_STEPS:]
    divergences, losses, lengths, peaks, zeros = torch.tensor(ends).unbind(dim=1)
    return Ending(
        reverse_kl=divergences.mean().item(),
        swing=divergences.std().item(),
        loss=losses.mean().item(),
        misled_share=(losses > CHANCE_LOSS).float().mean().item(),
        length=lengths.mean().item(),
        peak=peaks.mean().item(),
        zero_share=zeros.mean().item(),
    )


@dataclass
class _Game:
    setting: Setting
    teacher: Tensor
    student: Players
    table: Players
    start: Tensor
    generator: torch.Generator

    def __post_init__(self) -> None:
        self.past: list[Tensor] = []
        self.scorer = self.table.params()[0].detach().clone()

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Return [P] classes of the teacher and [P * G] of the student."""
        logprobs = student_logprobs(self.student.params()).detach()
        size = count * self.setting.group_size
        responses = sample_classes(logprobs, size, self.generator).flatten()
        return sample_classes(self.teacher[None], count, self.generator).flatten(), responses

    def teach(self) -> float:
        """Let the discriminator take a step; return its loss on fresh pairs from before."""
        taught, responses = self.draw(NUM_PROMPTS)
        fresh = self._loss(taught, responses)
        learned = self._with_past(responses)
        self.past.append(responses)
        if not (self.setting.is_frozen and len(self.past) > NUM_WARMUP_STEPS):
            self.table.descend(self._loss(taught, learned, self.setting.smoothing))
            self.scorer.lerp_(self.table.params()[0].detach(), 1.0 - self.setting.average)
        return (fresh.total / fresh.count).item()

    def step(self) -> tuple[float, float, float, float, float]:
        """Take a step of both; return what an ``Ending`` has the means of."""
        losses = [self.teach() for _ in range(self.setting.discriminator_steps)]
        _, responses = self.draw(NUM_PROMPTS)
        advantages = group_advantages(self._rewards(responses), self.setting.advantage)
        logprobs = student_logprobs(self.student.params())
        batch = rows_of(responses).with_advantages(advantages.flatten())
        reference = student_output(self.start, responses[None]).logprobs
        output = student_output(logprobs, responses[None])
        batch = batch.with_ref_logprobs(reference)
        loss = policy_loss(output, batch, PolicyOptions(kl_coef=self.setting.kl_coef))
        entropy = -(logprobs.exp() * logprobs).sum()
        bonus = self.setting.entropy_coef * entropy * loss.count
        self.student.descend(Loss(loss.total - bonus, loss.count))
        zeros, groups = zero_advantage_share(advantages)
        chances = logprobs.detach()[0].exp()
        return (
            kl_divergence(logprobs.detach()[0], self.teacher).item(),
            losses[0],
            (1.0 + responses.float()).mean().item(),
            chances.max().item(),
            (zeros / groups).item(),
        )

    def _loss(self, taught: Tensor, responses: Tensor, smoothing: float = 0.0) -> Loss:
        pairs = pairs_of(taught, responses)
        scores = self.table.params()[0][pairs.tokens[:, 1]]
        loss = discriminator_loss(ScorerOutput(scores), pairs, "bradley_terry")
        swapped = discriminator_loss(ScorerOutput(-scores), pairs, "bradley_terry")
        return Loss(torch.lerp(loss.total, swapped.total, smoothing), loss.count)

    def _rewards(self, responses: Tensor) -> Tensor:
        """Return [P, G] float32: the scores, with their bias, and corrected if asked."""
        lengths = (1.0 + responses.float()).view(-1, self.setting.group_size)
        scores = self.scorer[responses].view_as(lengths)
        rewards = scores + self.setting.bias * lengths.log()
        if not self.setting.corrects_length:
            return rewards
        products, squares = length_sums(rewards, lengths).tolist()
        return without_length(rewards, lengths, products / squares if squares else 0.0)

    def _with_past(self, responses: Tensor) -> Tensor:
        """Return as many responses, of which a share comes from earlier students."""
        share = self.setting.pool_share
        if not share or not self.past:
            return responses
        own = responses.view(NUM_PROMPTS, -1).clone()
        count = round(share * NUM_PROMPTS)
        drawn = torch.randint(len(self.past), (count,), generator=self.generator)
        for place, which in enumerate(drawn.tolist()):
            own[place] = self.past[which].view(NUM_PROMPTS, -1)[place]
        return own.flatten()


def main(seed: int = 0) -> None:
    """Print the number of every failure under every cure; a star where it is cured.

    Args:
        seed: of all games.
    """
    print(f"| failure, and its number | {' | '.join(CURES)} |")
    print("|---" * (len(CURES) + 1) + "|")
    for failure in FAILURES:
        cells = []
        for change in CURES.values():
            setting = replace(failure.setting, **change)  # pyright: ignore[reportArgumentType]
            number = failure.number(play(setting, seed))
            cells.append(f"{number:.2f}{'*' * failure.is_cured(number)}")
        print(f"| {failure.title} | {' | '.join(cells)} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    tyro.cli(main)
