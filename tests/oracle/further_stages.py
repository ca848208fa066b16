"""The stages that the paper does not have, in plain transformers and torch."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from tests.oracle.models import Number, load, plain, response_logprobs, response_tables
from tests.oracle.reference import Outcome, Reference, named
from tests.oracle.texts import Sampled


class Oracle(Reference):
    """Student and discriminator, taken through any stages of a run."""

    def begin(self, stage: str) -> None:
        """Begin a stage, with the models as they are."""
        if stage not in ("preference", "white_box"):
            return super().begin(stage)
        get = self._in(stage)
        self._num_prompts = 0
        resets = self.options["gad.reset-optimizer"]
        self.student.begin(get("student-lr"), get("steps"), resets)
        if stage == "white_box":
            self._teacher = load(AutoModelForCausalLM, Path(get("teacher")))
            return
        self._snapshot = copy.deepcopy(self._student)

    def white_box(self, groups: Sequence[Sampled]) -> Outcome:
        """Bring the student nearer to the teacher's distribution at every sampled token."""
        kind = self._in("white_box")("loss")
        numbers, drawn = self._described(groups), self._drawn(self._student, groups)
        rows = self._sampled_rows(groups)
        ours = torch.cat(response_tables(self._student, rows, self.temperature))
        with torch.no_grad():
            theirs = torch.cat(response_tables(self._teacher, rows, temperature=1.0))
        if kind == "sampled_kl":
            taken = torch.tensor([token for _, ids in rows for token in ids])[:, None]
            own = ours.gather(1, taken)
            gap = (own - theirs.gather(1, taken)).detach()
            value, loss = gap.mean(), (gap * own).mean()
        else:
            # A larger vocabulary than the student's: what is left of it is all there is.
            theirs = torch.log_softmax(theirs[:, : ours.shape[1]], dim=1)
            mean = ((ours.exp() + theirs.exp()) / 2).log()
            reverse, forward = ours.exp() * (ours - theirs), theirs.exp() * (theirs - ours)
            both = (ours.exp() * (ours - mean) + theirs.exp() * (theirs - mean)) / 2
            kinds = {"reverse_kl": reverse, "forward_kl": forward, "jensen_shannon": both}
            value = loss = kinds[kind].sum(dim=1).mean()
        far = float((ours - theirs[:, : ours.shape[1]]).detach().abs().mean())
        found = {
            "loss": Number(float(value.detach()), far),
            "entropy": plain(-(ours.exp() * ours).sum(dim=1).mean()),
        }
        numbers |= named("student", found | self.student.learn(loss))
        return Outcome(numbers, drawn)

    def preference(self, step: int, groups: Sequence[Sampled]) -> Outcome:
        """Prefer the teacher's response to the one that the snapshot gave."""
        get = self._in("preference")
        each, size = get("prompts-per-step"), get("refresh-epochs") * len(self.texts.rows)
        if size and step * each // size > max(0, step - 1) * each // size:
            self._snapshot = copy.deepcopy(self._student)
        numbers, drawn = self._described(groups), self._drawn(self._snapshot, groups)
        prompts = [self.texts.prompt(group.row) for group in groups]
        wins = list(zip(prompts, (self.texts.read(group)[0] for group in groups), strict=True))
        of_models = [self._student] if get("loss") == "simpo" else [self._student, self._snapshot]
        logprobs = [
            [response_logprobs(model, rows, temperature=1.0)[0] for model in of_models]
            for rows in (wins, self._sampled_rows(groups))
        ]
        if get("loss") == "simpo":
            beta, target = get("beta"), get("beta") / 2
            won, lost = (torch.stack([y.mean() for y in own]) for (own,) in logprobs)
        else:
            beta, target = get("beta"), 0.0
            won, lost = (
                torch.stack([(y - r).sum() for y, r in zip(own, ref, strict=True)])
                for own, ref in ((own, [r.detach() for r in ref]) for own, ref in logprobs)
            )
        margins = beta * (won - lost)
        loss = -logsigmoid(margins - target).mean()
        # The errors of log-probabilities, a few hundredths of a thousandth, enter as they are.
        spread = float(margins.detach().abs().mean()) + beta
        found = {
            "loss": plain(loss),
            "accuracy": Number(float((margins > 0).float().mean()), 1.0),
            "margin": Number(float(margins.detach().mean()), spread),
        }
        numbers |= named("student", found | self.student.learn(loss))
        return Outcome(numbers, drawn)

    def best_of_n(self, groups: Sequence[Sampled]) -> Outcome:
        """Imitate the responses with the highest rewards; the discriminator rests."""
        get = self._in("best_of_n")
        numbers, drawn = self._described(groups), self._drawn(self._student, groups)
        judged, scores, teachers = self._judge(groups, 0, learns=False)
        numbers |= named("discriminator", judged)
        rewards, parts = self._summed(groups, scores)
        numbers |= parts
        ranks = rewards.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        is_chosen = ranks < get("keep")
        if get("min-margin") is not None:
            is_chosen &= scores - teachers > get("min-margin")
        numbers["response/chosen_share"] = Number(float(is_chosen.float().mean()), 1.0)
        rows = [
            row
            for row, is_in in zip(self._sampled_rows(groups), is_chosen.flatten(), strict=True)
            if is_in
        ]
        numbers |= named("student", self._fit(rows))
        return Outcome(numbers, drawn, scores)
