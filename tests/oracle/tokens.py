"""What a run shows of single tokens, against the values that the oracle's scorer gave them."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tests.oracle.further_stages import Oracle
from tests.oracle.product import Step
from tests.oracle.texts import BROKEN, Texts

JUDGED = ("warmup", "best_of_n", "adversarial")


def other_tokens(step: Step, oracle: Oracle) -> Iterator[str]:
    """Yield where samples show tokens that were not read, other values, or none.

    They are shown where samples are written, in the first step of a stage, if scores are made of
    them. Data ranks beside the first write no samples. Groups may have been replaced.
    """
    kind, num_shown = oracle.options["discriminator.score"], 0
    for group in step.groups:
        asked = oracle.texts.rows[group.row]["content"][0]["content"]
        sample = step.samples.get(f"user: {asked}", {"rollouts": []})
        shown = [sample.get("teacher_tokens", [])]
        shown += [rollout.get("tokens", []) for rollout in sample["rollouts"]]
        if not any(shown):
            continue
        num_shown += 1
        prompt, (teacher, students) = oracle.texts.prompt(group.row), oracle.texts.read(group)
        for tokens, ids in zip(shown, (teacher, *students), strict=True):
            if not ids and not tokens:
                continue
            if not _are_of(tokens, ids, oracle.texts):
                yield f"tokens: {tokens}, the oracle read {ids}"
                continue
            expected = oracle.scorer.values((prompt, ids))
            found = torch.tensor([value for _, value in tokens])
            if not (found - expected).abs().max() <= 2e-5 * expected.abs().max():
                yield f"values of tokens: {found.tolist()}, the oracle has {expected.tolist()}"
        for rollout, tokens in zip(sample["rollouts"], shown[1:], strict=True):
            total = sum(value for _, value in tokens)
            score = total if kind == "sum" else total / max(1, len(tokens))
            if abs(score - rollout["score"]) > 1e-4 * sum(abs(value) for _, value in tokens):
                yield f"score: {rollout['score']}, its tokens make it {score}"
    is_due = kind != "last_token" and step.number == 0 and step.stage in JUDGED
    if bool(num_shown) != is_due:
        yield f"tokens of {num_shown} groups are shown, with {kind}, in step {step.number}"


def _are_of(tokens: Any, ids: Sequence[int], texts: Texts) -> bool:
    """Return whether texts are those that ids decode to, one by one, the end token's none."""
    own = ids[:-1] if ids[-1:] == [texts.end] else ids
    if [text is None for text, _ in tokens] != [False] * len(own) + [True] * (len(ids) - len(own)):
        return False
    for end in range(len(own) + 1):
        so_far = texts.decode(own[:end])
        if end < len(own) and so_far.endswith(BROKEN):
            continue  # inside a character
        if "".join(text for text, _ in tokens[:end]) != so_far:
            return False
    return True
