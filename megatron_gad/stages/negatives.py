"""Past groups that the discriminator learns from again, so that it does not forget them."""

import hashlib
import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from megatron_gad.files import to_json
from megatron_gad.types import Group, Prompt, Rollout

Draw = Literal["uniform", "recent"]


@dataclass(frozen=True)
class PastGroup:
    """A group as the discriminator read it in an earlier step.

    iteration: in which it was sampled. group: without what the discriminator does not read.
    """

    iteration: int
    group: Group


class NegativesPool:
    """The newest groups of a stage; the same on all ranks."""

    def __init__(self, size: int, seed: int) -> None:
        """Begin with none. size: groups that are held at most. seed: of the run."""
        self._size = size
        self._seed = seed
        self._past: list[PastGroup] = []

    def __len__(self) -> int:
        return len(self._past)

    def add(self, iteration: int, groups: Sequence[Group]) -> None:
        """Take the groups of a step in, in the order of their rows; the oldest leave.

        groups: of all data ranks.
        """
        rows = sorted(groups, key=lambda group: group.prompt.index)
        self._past += [PastGroup(iteration, as_read(group)) for group in rows]
        del self._past[: -self._size]

    def draw(self, count: int, iteration: int, how: Draw) -> list[PastGroup]:
        """Return some groups, none twice; all if there are no more.

        how: "recent" draws the newest as many times as likely as the oldest as there are groups,
            and those between in proportion to their place.
        iteration: of the step; the draw follows from it and the seed alone.
        """
        count = min(count, len(self._past))
        if not count:
            return []
        weights = torch.ones(len(self._past))
        if how == "recent":
            weights = weights.cumsum(0)
        generator = torch.Generator().manual_seed(_seed(self._seed, iteration, "past"))
        chosen: Any = torch.multinomial(weights, count, replacement=False, generator=generator)
        return [self._past[number] for number in chosen.tolist()]

    def resting(self, rows: Collection[int], count: int, iteration: int) -> set[int]:
        """Return which of a step's rows make room for past ones: they are scored, and not trained.

        rows: of all data ranks, whose order does not matter.
        """
        draw = random.Random(_seed(self._seed, iteration, "resting"))
        return set(draw.sample(sorted(rows), count))

    def state(self) -> list[str]:
        """Return the pool as lines of JSON."""
        return [to_json(_record(past)) for past in self._past]

    def load(self, state: Sequence[str]) -> None:
        """Go on with a pool that was saved; of a larger one with its newest groups."""
        self._past = [_past(json.loads(line)) for line in state][-self._size :]


def _seed(seed: int, iteration: int, purpose: str) -> int:
    text = f"{seed}/{iteration}/{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def as_read(group: Group) -> Group:
    """Return a group without what the discriminator does not read."""
    prompt = group.prompt
    return Group(
        Prompt(
            prompt.index,
            (),
            "",
            prompt.ids,
            prompt.teacher_ids,
            scorer_ids=prompt.scorer_ids,
            scorer_teacher_ids=prompt.scorer_teacher_ids,
        ),
        tuple(_rollout(each.text_ids, each.scorer_ids) for each in group.rollouts),
    )


def _rollout(text_ids: Sequence[int], scorer_ids: Sequence[int]) -> Rollout:
    rollout = Rollout((), (), "stop", weights_version=-1)
    return replace(rollout, text_ids=tuple(text_ids), scorer_ids=tuple(scorer_ids))


def _record(past: PastGroup) -> dict[str, Any]:
    prompt = past.group.prompt
    return {
        "iteration": past.iteration,
        "row": prompt.index,
        "ids": [prompt.ids, prompt.teacher_ids, prompt.scorer_ids, prompt.scorer_teacher_ids],
        "rollouts": [[each.text_ids, each.scorer_ids] for each in past.group.rollouts],
    }


def _past(record: Mapping[str, Any]) -> PastGroup:
    ids, teacher_ids, scorer_ids, scorer_teacher_ids = map(tuple, record["ids"])
    prompt = Prompt(
        record["row"],
        (),
        "",
        ids,
        teacher_ids,
        scorer_ids=scorer_ids,
        scorer_teacher_ids=scorer_teacher_ids,
    )
    rollouts = tuple(_rollout(*each) for each in record["rollouts"])
    return PastGroup(record["iteration"], Group(prompt, rollouts))
