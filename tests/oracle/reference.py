"""The published algorithm in plain transformers and torch.

No line of it is shared with the package, and nothing but what was drawn at random comes from a run:
the ids that its engine sampled. A mistake therefore has to be made twice to go unseen.
"""

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus
from transformers import AutoModel, AutoModelForCausalLM

from tests.oracle.models import (
    Learner,
    Number,
    Options,
    Row,
    Scorer,
    load,
    plain,
    response_logprobs,
)
from tests.oracle.policy import average, kl_of, objective, ratio_of
from tests.oracle.resampling import resampled
from tests.oracle.rewards import advantages_of, explained_by_length, summed
from tests.oracle.texts import Sampled, Texts


@dataclass(frozen=True)
class Outcome:
    """What a step should report.

    numbers: by the name of the metric.
    drawn: the logprobs of every sampled response under the weights that should have sampled it.
    scores, advantages: [P, G] in the order of the groups; None without them.
    groups: that the student learned from, if they are not those that were sampled first.
    """

    numbers: dict[str, Number]
    drawn: Sequence[Tensor] = ()
    scores: Tensor | None = None
    advantages: Tensor | None = None
    groups: Sequence[Sampled] = ()


class Reference:
    """Student, discriminator and what they learn by, taken through the stages of a run."""

    def __init__(self, options: Options) -> None:
        self.options = options
        folder = Path(options["student.path"])
        cap = options["data.max-response-tokens"]
        self.texts = Texts(folder, Path(options["data.path"]), cap)
        self.temperature: float = options["rollout.temperature"]
        self._student = load(AutoModelForCausalLM, folder)
        self.student = Learner(dict(self._student.named_parameters()), options)
        self.discriminator: Learner | None = None
        self._at_last_step = self._student
        self.seeds: set[int] = set()  # of samplings; none may come twice

    def begin(self, stage: str) -> None:
        """Begin a stage, with the models as they are."""
        get = self._in(stage)
        steps = get("steps")
        self._num_prompts = 0
        self._has_pool = self.options["gad.negatives-pool"] > 0
        self.history: list[dict[int, Sampled]] = []
        if stage == "seqkd":
            self.student.begin(get("lr"), steps, resets=False)
            return
        if self.discriminator is None:
            self._make_discriminator()
        assert self.discriminator is not None
        student_steps, discriminator_steps = self._turns(stage, steps)
        resets = self.options["gad.reset-optimizer"]
        self.student.begin(get("student-lr"), student_steps, resets)
        rate = self.options["discriminator.lr"] if stage == "best_of_n" else get("discriminator-lr")
        self.discriminator.begin(rate, discriminator_steps, resets)
        self._anchor = copy.deepcopy(self._student)

    def seqkd(self) -> Outcome:
        """Fit the teacher's responses."""
        rows = self.next_rows(self.options["seqkd.batch-size"])
        return Outcome(named("student", self._imitate(rows)))

    def warmup(self, step: int, groups: Sequence[Sampled]) -> Outcome:
        """Teach the discriminator, then let the student imitate the teacher."""
        get = self._in("warmup")
        numbers, drawn = self._described(groups), self._drawn(self._student, groups)
        judged, scores, _ = self._judge(groups, 0, learns=True)
        numbers |= named("discriminator", judged)
        if get("train-student") and step >= get("discriminator-only-steps"):
            rows = [group.row for group in groups]
            numbers |= named("student", self._imitate(rows))
        return Outcome(numbers, drawn, scores)

    def adversarial(
        self,
        step: int,
        groups: Sequence[Sampled],
        extra: Sequence[Sequence[Sampled]],
        past: Sequence[tuple[int, int]] = (),
        resting: Collection[int] = (),
        further: Sequence[Sequence[Sampled]] = (),
    ) -> Outcome:
        """Score, teach the discriminator, raise what it scored above the group.

        past: groups that it learns from again: how many steps ago, and their rows. resting: rows
            whose groups it does not. further: of every round of further prompts.
        """
        get = self._in("adversarial")
        # An engine that works ahead had the weights from before the step before.
        is_old = get("overlap") and step > 0
        drawn = self._drawn(self._at_last_step if is_old else self._student, groups)
        if get("overlap"):
            self._at_last_step = copy.deepcopy(self._student)
        numbers = self._described(groups)

        interval = get("discriminator-interval")
        learns = interval > 0 and step % interval == 0
        again = [self.history[-ago][row] for ago, row in past] if self._has_pool else None
        judged, scores, _ = self._judge(
            groups, get("discriminator-samples"), learns, again, resting
        )
        numbers |= named("discriminator", judged)
        self.history.append({group.row: group for group in groups})
        for fresh in extra:
            self._judge(fresh, 0, learns=True)

        anchor = self._anchored(rows := self._sampled_rows(groups))
        lengths = torch.tensor([[len(r.ids) for r in group.responses] for group in groups])
        slope, fitted = explained_by_length(scores, lengths)
        counted = scores - fitted if self.options["gad.length-correction"] else scores
        total, parts = self._summed(groups, counted)
        numbers |= parts
        rewards = total - self._penalty(rows, anchor).view_as(scores)
        advantages = advantages_of(rewards, self.options["gad.advantage"])
        spread = float(rewards.std())
        if get("resample-rounds"):
            groups, advantages, count = resampled(self, groups, scores, advantages, further)
            numbers["advantage/replaced_share"] = Number(count / len(groups), 1.0)
            anchor = self._anchored(rows := self._sampled_rows(groups))
        zeros = float((advantages == 0).all(dim=1).float().mean())
        numbers |= {
            "reward/mean": Number(float(rewards.mean()), spread),
            "reward/std": Number(spread, spread),
            "advantage/zero_share": Number(zeros, 1.0),
            "reward/length_slope": Number(slope, spread),
        }
        engine = [torch.tensor(r.logprobs) for group in groups for r in group.responses]
        learned_from = (rows, advantages.float().flatten(), anchor, engine)
        rows, weights, anchor, engine = self._kept(groups, *learned_from)
        size = len(groups[0].responses)
        places = [g * size + r for g in self._minibatch_order(groups) for r in range(size)]
        numbers |= named("student", self._reinforce(rows, weights, anchor, engine, places))
        return Outcome(numbers, drawn, scores, advantages, groups)

    def next_rows(self, count: int) -> list[int]:
        """Return the next rows of the data, which are taken as they stand in the file."""
        first, self._num_prompts = self._num_prompts, self._num_prompts + count
        return [row % len(self.texts.rows) for row in range(first, first + count)]

    def _in(self, stage: str) -> Callable[[str], Any]:
        return lambda key: self.options[f"{stage.replace('_', '-')}.{key}"]

    def _make_discriminator(self) -> None:
        path = self.options["discriminator.path"]
        network = load(AutoModel, Path(path)) if path else copy.deepcopy(self._student.model)
        self.scorer = Scorer(network, self.options)
        self.discriminator = Learner(self.scorer.named, self.options)

    def _turns(self, stage: str, steps: int) -> tuple[int, int]:
        """Return how many steps student and discriminator take in a stage."""
        get = self._in(stage)
        if stage == "best_of_n":
            return steps, 0
        if stage == "warmup":
            student = sum(step >= get("discriminator-only-steps") for step in range(steps))
            return student if get("train-student") else 0, steps
        student = steps * get("student-updates") * get("student-minibatches")
        interval = get("discriminator-interval")
        own = sum(step % interval == 0 for step in range(steps)) if interval else 0
        return student, own + steps * get("extra-discriminator-steps")

    def _described(self, groups: Sequence[Sampled]) -> dict[str, Number]:
        responses = [response for group in groups for response in group.responses]
        read = [self.texts.read(group) for group in groups]
        students = [ids for _, students in read for ids in students]
        changed = [
            all(list(response.ids[n : n + len(ids)]) != ids for n in range(len(response.ids)))
            for response, ids in zip(responses, students, strict=True)
        ]
        values = {
            "response/length_mean": _mean([len(response.ids) for response in responses]),
            "response/truncated_share": _mean([response.is_cut for response in responses]),
            "response/retokenized_share": _mean(changed),
            "teacher/length_mean": _mean([len(teacher) for teacher, _ in read]),
        }
        return {name: Number(value, 1.0) for name, value in values.items()}

    def _sampled_rows(self, groups: Sequence[Sampled]) -> list[Row]:
        return [
            (self.texts.prompt(group.row), list(response.ids))
            for group in groups
            for response in group.responses
        ]

    def _drawn(self, sampled_by: Any, groups: Sequence[Sampled]) -> list[Tensor]:
        with torch.no_grad():
            return response_logprobs(sampled_by, self._sampled_rows(groups), self.temperature)[0]

    def _judge(
        self,
        groups: Sequence[Sampled],
        num_trained: int,
        learns: bool,
        again: Sequence[Sampled] | None = None,
        resting: Collection[int] = (),
    ) -> tuple[dict[str, Number], Tensor, Tensor]:
        """Return what the discriminator reports, and its scores from before it learns.

        Of the student's responses, [P, G], and of the teacher's, [P, 1].

        again: groups of steps before, which train too. resting: rows whose groups do not.
        """
        rows: list[Row] = []
        for group in (*groups, *(again or ())):
            prompt, (teacher, students) = self.texts.prompt(group.row), self.texts.read(group)
            rows += [(prompt, ids) for ids in (teacher, *students)]
        scores = self.scorer(rows).view(len(groups) + len(again or ()), -1)
        trained = [p for p, group in enumerate(groups) if group.row not in resting]
        trained += range(len(groups), len(scores))
        students = scores[trained, 1:][:, : num_trained or None]
        teachers = scores[trained, :1].expand_as(students)
        if self.options["gad.discriminator-loss"] == "bradley_terry":
            losses = -logsigmoid(teachers - students)
        else:
            losses = (softplus(-teachers) + softplus(students)) / 2
        loss, margins = losses.mean(), (teachers - students).detach()
        spread = float(scores.detach().abs().mean())
        numbers = {
            "loss": plain(loss),
            "accuracy": Number(float(((margins.sign() + 1) / 2).mean()), 1.0),
            "margin": Number(float(margins.mean()), spread),
            "teacher_score": Number(float(teachers.detach().mean()), spread),
            "student_score": Number(float(students.detach().mean()), spread),
        }
        if learns:
            assert self.discriminator is not None
            numbers |= self.discriminator.learn(loss)
        if again is not None and learns:
            ahead = ((scores[:, :1] - scores[:, 1:]).detach().sign().mean(dim=1) + 1) / 2
            for name, part in (("fresh", ahead[: len(groups)]), ("past", ahead[len(groups) :])):
                numbers[f"{name}_accuracy"] = Number(float(part.sum()) / max(1, len(part)), 1.0)
        own = scores[: len(groups)].detach()
        return numbers, own[:, 1:], own[:, :1]

    def _imitate(self, data_rows: Sequence[int]) -> dict[str, Number]:
        return self._fit([(self.texts.prompt(row), self.texts.teacher(row)) for row in data_rows])

    def _fit(self, rows: Sequence[Row]) -> dict[str, Number]:
        logprobs, entropies = response_logprobs(self._student, rows, temperature=1.0)
        loss = -torch.cat(logprobs).mean()
        entropy = plain(torch.cat(entropies).mean())
        return {"loss": plain(loss), "entropy": entropy, **self.student.learn(loss)}

    def _anchored(self, rows: Sequence[Row]) -> list[Tensor] | None:
        """Return the reference's logprobs of every response; None where no KL counts."""
        if not self.options["gad.kl-coef"]:
            return None
        with torch.no_grad():
            return response_logprobs(self._anchor, rows, self.temperature)[0]

    def _penalty(self, rows: Sequence[Row], anchor: list[Tensor] | None) -> Tensor:
        """Return what the KL takes off the reward of every response."""
        if self.options["gad.kl-in"] == "loss" or anchor is None:
            return torch.zeros(len(rows))
        with torch.no_grad():
            logprobs, _ = response_logprobs(self._student, rows, self.temperature)
        kl = [kl_of(self.options, *pair).sum() for pair in zip(logprobs, anchor, strict=True)]
        return self.options["gad.kl-coef"] * torch.stack(kl)

    def _reinforce(
        self,
        rows: Sequence[Row],
        advantages: Tensor,
        anchor: list[Tensor] | None,
        engine: list[Tensor],
        places: Sequence[int],
    ) -> dict[str, Number]:
        """Take the student's steps on one batch; returns what the last of them reports.

        places: the rows in the order of the minibatches, which are equally large.
        """
        with torch.no_grad():
            before = response_logprobs(self._student, rows, self.temperature)[0]
        whole = (rows, advantages, anchor, engine, before)
        count = self.options["adversarial.student-minibatches"]
        cut = [
            places[i * len(places) // count : (i + 1) * len(places) // count] for i in range(count)
        ]
        numbers: dict[str, Number] = {}
        for part in cut * self.options["adversarial.student-updates"]:
            if count > 1:
                chosen: Any = [each and [each[r] for r in part] for each in map(_listed, whole)]
            else:
                chosen = whole
            rows, advantages, anchor, engine, old = chosen
            logprobs, entropies = response_logprobs(self._student, rows, self.temperature)
            gaps = [now - then for now, then in zip(logprobs, old, strict=True)]
            ratios = [ratio_of(self.options, gap) for gap in gaps]
            terms, clipped = self._surrogates(logprobs, ratios, advantages, old, engine)
            pairs = zip(logprobs, anchor or (), strict=anchor is not None)
            kl = [kl_of(self.options, *pair) for pair in pairs]
            if kl and self.options["gad.kl-in"] == "loss":
                coefficient = self.options["gad.kl-coef"]
                terms = [a + coefficient * b for a, b in zip(terms, kl, strict=True)]
            loss = average(self.options, terms)
            size = float(average(self.options, [term.detach().abs() for term in terms]))
            numbers = {
                "loss": Number(float(loss.detach()), size),
                "entropy": plain(torch.cat(entropies).mean()),
                "ratio_mean": plain(torch.cat(ratios).mean()),
                "clipped_share": Number(float(torch.cat(clipped).float().mean()), 1.0),
            }
            if anchor:
                # An error of a log-probability enters a divergence times the gap that it adds to.
                far = (torch.cat(anchor) - torch.cat(logprobs).detach()).abs()
                numbers["kl"] = Number(float(torch.cat(kl).detach().mean()), float(far.mean()))
            numbers |= self.student.learn(loss)
        return numbers

    def _summed(
        self, groups: Sequence[Sampled], scores: Tensor
    ) -> tuple[Tensor, dict[str, Number]]:
        """Return the weighed sum of all rewards, and the mean of what each gave."""
        if not self.options["rewards"]:
            return scores, {}
        texts = [[self.texts.text(r) for r in group.responses] for group in groups]
        given = {
            "vowels": torch.tensor([[sum(map(t.count, "aeiou")) for t in row] for row in texts]),
            "brevity": -torch.tensor([[len(r.ids) for r in group.responses] for group in groups]),
            "odd": torch.tensor([[len(r.ids) % 2 for r in group.responses] for group in groups]),
            "discriminator": scores,
        }
        return summed(given, self.options["rewards"])

    def _minibatch_order(self, groups: Sequence[Sampled]) -> list[int]:
        """Return the groups in the order in which the student's minibatches have them."""
        count = self.options["adversarial.student-minibatches"]
        ranked = sorted(range(len(groups)), key=lambda number: groups[number].row)
        return [number for first in range(count) for number in ranked[first::count]]

    def _kept(self, groups: Sequence[Sampled], *of_rows: Any) -> list[Any]:
        """Leave out the rows of responses that were cut, if they are not to be learned from."""
        if not self.options["gad.mask-truncated"]:
            return list(of_rows)
        is_cut = [response.is_cut for group in groups for response in group.responses]
        kept = [row for row, cut in enumerate(is_cut) if not cut]
        return [each and [each[row] for row in kept] for each in map(_listed, of_rows)]

    def _surrogates(
        self,
        logprobs: list[Tensor],
        ratios: list[Tensor],
        advantages: Tensor,
        old: list[Tensor],
        engine: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the loss of every token without its KL, and where the clip took effect."""
        cap = self.options["gad.tis-cap"]
        terms, clipped = [], []
        for now, ratio, advantage, before, sampled in zip(
            logprobs, ratios, advantages, old, engine, strict=True
        ):
            raised, is_held = objective(self.options, now, ratio, float(advantage))
            weight = torch.exp(before - sampled).clamp(max=cap) if cap else torch.ones(())
            terms.append(-raised * weight)
            clipped.append(is_held)
        return terms, clipped


def _listed(values: Any) -> Any:
    return list(values) if isinstance(values, Tensor) else values


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def named(who: str, numbers: dict[str, Number]) -> dict[str, Number]:
    return {f"{who}/{name}": value for name, value in numbers.items()}
