"""The discriminator's losses by hand, their gradients in the scores, and the two-pass way."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from megatron_gad.algorithms.discriminator import (
    bradley_terry,
    cross_entropy,
    discriminator_loss,
    score_gradients,
    split_scores,
    weighted_score_loss,
)
from megatron_gad.types import PairBatch, ScorerOutput

KINDS = ("bradley_terry", "cross_entropy")
LN2 = math.log(2)
LN3 = math.log(3)
LN4 = math.log(4)
# Two groups of one teacher and two students; margins ln 2, ln 4 | -ln 3, and one that does not
# train. No two of them mirror each other, so that what is turned round adds up to something else.
SCORES = torch.tensor([LN4, LN2, 0.0, 0.0, LN3, 5.0])
TRAINED = torch.tensor([True, True, True, True, True, False])


def _pair_batch(trained: Tensor, group_size: int) -> PairBatch:
    num_rows = trained.shape[0]
    return PairBatch(
        tokens=torch.zeros(num_rows, 1, dtype=torch.int64),
        lengths=torch.ones(num_rows, dtype=torch.int64),
        response_mask=torch.ones(num_rows, 1, dtype=torch.bool),
        trained=trained,
        group_size=group_size,
    )


def test_split_scores_takes_the_teacher_from_the_head_of_each_group():
    teacher, student = split_scores(torch.arange(6.0), group_size=2)
    assert teacher.tolist() == [0.0, 3.0]
    assert student.tolist() == [[1.0, 2.0], [4.0, 5.0]]
    with pytest.raises(ValueError, match="5 rows are not whole groups of 1 \\+ 2"):
        split_scores(torch.arange(5.0), group_size=2)


def test_bradley_terry_by_hand():
    loss = discriminator_loss(ScorerOutput(SCORES), _pair_batch(TRAINED, 2), "bradley_terry")
    # -log sigmoid of ln 2, ln 4, -ln 3: log 3/2, log 5/4, log 4
    assert loss.total.item() == pytest.approx(math.log(3 / 2) + math.log(5 / 4) + LN4)
    means = {name: (total / count).item() for name, (total, count) in loss.metrics.items()}
    assert means == pytest.approx(
        {
            "loss": loss.total.item() / 3,
            "accuracy": 2 / 3,
            "margin": (LN2 + LN4 - LN3) / 3,
            "teacher_score": 2 * LN4 / 3,
            "student_score": (LN2 + LN3) / 3,
        }
    )
    assert loss.count.item() == 3.0


def test_a_tie_is_half_right():
    pairs = _pair_batch(torch.ones(3, dtype=torch.bool), 2)
    loss = discriminator_loss(ScorerOutput(torch.tensor([1.0, 1.0, 0.5])), pairs, "bradley_terry")
    total, count = loss.metrics["accuracy"]
    assert (total.item(), count.item()) == (1.5, 2.0)


def test_cross_entropy_by_hand():
    loss = discriminator_loss(ScorerOutput(SCORES), _pair_batch(TRAINED, 2), "cross_entropy")
    # Teacher ln 4 costs log 5/4, 0 costs log 2; student ln 2 costs log 3, 0 log 2, ln 3 log 4.
    pairs = [math.log(5 / 4) + LN3, math.log(5 / 4) + LN2, LN2 + LN4]
    assert loss.total.item() == pytest.approx(sum(pairs) / 2)
    assert loss.count.item() == 3.0


def test_score_gradients_by_hand():
    batch = _pair_batch(TRAINED, 2)
    # d/ds = sigmoid(s - t): 1/3, 1/5 | 3/4. d/dt is less their sum.
    pairs, loss = score_gradients(SCORES, batch, "bradley_terry")
    expected = torch.tensor([-1 / 3 - 1 / 5, 1 / 3, 1 / 5, -3 / 4, 3 / 4, 0.0])
    torch.testing.assert_close(pairs, expected)
    assert not pairs.requires_grad
    assert loss.metrics["loss"][0].item() == pytest.approx(math.log(3 / 2) + math.log(5 / 4) + LN4)
    # Half of sigmoid(s): 2/3, 1/2 | 3/4. Half of sigmoid(-t), once per pair: 1/5, 1/5 | 1/2.
    single, _ = score_gradients(SCORES, batch, "cross_entropy")
    expected = torch.tensor([-1 / 5, 1 / 3, 1 / 4, -1 / 4, 3 / 8, 0.0])
    torch.testing.assert_close(single, expected)


def test_cross_entropy_equals_torchs_with_the_teacher_once_per_rollout():
    scores = torch.randn(4 * 6, generator=torch.Generator().manual_seed(0))
    teacher, student = split_scores(scores, 5)
    total, count = cross_entropy(teacher, student, torch.ones(4, 5, dtype=torch.bool))
    repeated = teacher[:, None].expand(4, 5)
    logits = torch.cat([repeated.flatten(), student.flatten()])
    labels = torch.cat([torch.ones(20), torch.zeros(20)])
    torch.testing.assert_close(total / count, binary_cross_entropy_with_logits(logits, labels))


@pytest.mark.parametrize("loss_fn", [bradley_terry, cross_entropy])
def test_chance_costs_log_2(loss_fn):
    total, count = loss_fn(torch.zeros(3), torch.zeros(3, 4), torch.ones(3, 4, dtype=torch.bool))
    assert (total / count).item() == pytest.approx(LN2)


@pytest.mark.parametrize("loss_fn", [bradley_terry, cross_entropy])
def test_gradients_equal_finite_differences(loss_fn):
    generator = torch.Generator().manual_seed(1)
    teacher = torch.randn(2, generator=generator, dtype=torch.float64, requires_grad=True)
    student = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    trained = torch.tensor([[True, False, True], [True, True, True]])
    assert torch.autograd.gradcheck(lambda t, s: loss_fn(t, s, trained)[0], (teacher, student))


@pytest.mark.parametrize("kind", KINDS)
def test_scoring_first_and_weighting_after_gives_the_same_parameter_gradient(kind):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    weights = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    is_trained = torch.tensor([1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 0, 1]).bool()
    whole = discriminator_loss(
        ScorerOutput((inputs @ weights).tanh()), _pair_batch(is_trained, 3), kind
    )
    (expected,) = torch.autograd.grad(whole.total / whole.count, weights)

    scores = (inputs @ weights).tanh().detach()
    gradients, _ = score_gradients(scores, _pair_batch(is_trained, 3), kind)
    by_group = torch.zeros_like(weights)
    by_rows = torch.zeros_like(weights)
    count = torch.tensor(0.0)
    for rows in torch.arange(12).split(4):
        output = ScorerOutput((inputs[rows] @ weights).tanh())
        part = weighted_score_loss(output, _pair_batch(is_trained[rows], 3), gradients[rows])
        by_group += torch.autograd.grad(part.total, weights)[0]
        count += part.count
    torch.testing.assert_close(by_group / count, expected)

    num_pairs = torch.tensor(0.0)
    for rows in torch.arange(12).split(5):
        output = ScorerOutput((inputs[rows] @ weights).tanh())
        batch = _pair_batch(is_trained[rows], 3)
        share = whole.count * len(rows) / 12
        part = weighted_score_loss(output, batch, gradients[rows], num_pairs=share)
        by_rows += torch.autograd.grad(part.total, weights)[0]
        num_pairs += part.count
    torch.testing.assert_close(by_rows / num_pairs, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_confident_scores_stay_finite(kind):
    scores = torch.tensor([300.0, -300.0, -300.0, 300.0], requires_grad=True)
    loss = discriminator_loss(ScorerOutput(scores), _pair_batch(torch.ones(4).bool(), 1), kind)
    (gradient,) = torch.autograd.grad(loss.total, scores)
    assert loss.total.item() == (600.0 if kind == "bradley_terry" else 300.0)
    scale = 1.0 if kind == "bradley_terry" else 0.5
    torch.testing.assert_close(gradient, scale * torch.tensor([0.0, 0.0, -1.0, 1.0]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_without_a_pair_is_not_there(kind):
    nan = float("nan")
    scores = torch.tensor([nan, nan, 1.0, 0.0], requires_grad=True)
    batch = _pair_batch(torch.tensor([True, False, True, True]), 1)
    loss = discriminator_loss(ScorerOutput(scores), batch, kind)
    (gradient,) = torch.autograd.grad(loss.total, scores)
    alone = discriminator_loss(
        ScorerOutput(scores[2:]), _pair_batch(torch.tensor([True, True]), 1), kind
    )
    assert loss.total.item() == alone.total.item()
    assert loss.count.item() == 1.0
    assert gradient[:2].tolist() == [0.0, 0.0]
    assert gradient[2:].isfinite().all()


def test_an_unknown_kind_names_the_allowed_ones():
    with pytest.raises(ValueError, match=r"discriminator_loss = 'hinge'; use 'bradley_terry'"):
        discriminator_loss(
            ScorerOutput(SCORES),
            _pair_batch(TRAINED, 2),
            "hinge",  # pyright: ignore[reportArgumentType]
        )


# Scores of two answers of teachers to one prompt, and of all that a student may say, each with its
# probability.
TEACHERS = torch.tensor([LN2, -0.7])
STUDENTS = torch.tensor([0.3, -LN3, 1.1])
PROBABILITIES = torch.tensor([0.5, 0.2, 0.3])


def _slopes_of_rows(kind: str, said: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Gradients of the mean loss by the scores of both teachers and of what a student may say.

    said: of every teacher's row what the student said.
    """
    teachers, students = TEACHERS.clone().requires_grad_(), STUDENTS.clone().requires_grad_()
    rows = [row for i, says in enumerate(said) for row in (teachers[i], *students[list(says)])]
    pairs = _pair_batch(torch.ones(len(rows), dtype=torch.bool), len(said[0]))
    loss = discriminator_loss(ScorerOutput(torch.stack(rows)), pairs, kind)  # pyright: ignore
    (loss.total / loss.count).backward()
    assert teachers.grad is not None and students.grad is not None
    return teachers.grad, students.grad


def _slopes_of_all_pairs(kind: str, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The same by hand, of all pairs of a teacher with what a student may say.

    weights: of what the student may say; they add up to 1.
    """
    if kind == "cross_entropy":
        return -torch.sigmoid(-TEACHERS) / 4, torch.sigmoid(STUDENTS) * weights / 2
    above = torch.sigmoid(STUDENTS - TEACHERS[:, None])
    return -(above * weights).sum(dim=1) / 2, above.mean(dim=0) * weights


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_one_prompt_with_the_same_rollouts_are_all_pairs(kind: str) -> None:
    found = _slopes_of_rows(kind, [(0, 2, 1, 2)] * 2)
    torch.testing.assert_close(found, _slopes_of_all_pairs(kind, torch.tensor([1, 1, 2]) / 4))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_one_prompt_with_rollouts_of_their_own_are_so_in_expectation(kind: str) -> None:
    teachers, students = torch.zeros(2), torch.zeros(3)
    for said in product(range(3), repeat=4):
        slopes = _slopes_of_rows(kind, [said[:2], said[2:]])
        teachers += PROBABILITIES[list(said)].prod() * slopes[0]
        students += PROBABILITIES[list(said)].prod() * slopes[1]
    torch.testing.assert_close((teachers, students), _slopes_of_all_pairs(kind, PROBABILITIES))
