"""Shares of equal cost: which data rank trains on which group or row."""

import heapq
from collections.abc import Sequence

from megatron_gad.types import Group, Prompt


def group_cost(
    group: Group, student_shares: bool = False, discriminator_shares: bool = False
) -> int:
    """Return the tokens that both models train on for a group.

    The student reads every rollout behind its prompt; the discriminator reads what it makes of the
    rollouts' texts, and the teacher's response, equal ones once.

    student_shares, discriminator_shares: the model reads the prompt once for all of them.
    """
    rollouts = [rollout.ids for rollout in group.rollouts]
    scored_prompt, *responses = scored_ids(group)
    texts = set(responses)
    student = len(group.prompt.ids) * (1 if student_shares else len(rollouts))
    discriminator = len(scored_prompt) * (1 if discriminator_shares else len(texts))
    return student + discriminator + sum(map(len, rollouts)) + sum(map(len, texts))


def scored_ids(group: Group) -> list[tuple[int, ...]]:
    """Return what the discriminator reads: prompt, the teacher's response, that of each rollout."""
    prompt = group.prompt
    if prompt.scorer_ids:
        own = (rollout.scorer_ids for rollout in group.rollouts)
        return [prompt.scorer_ids, prompt.scorer_teacher_ids, *own]
    return [prompt.ids, prompt.teacher_ids, *(rollout.text_ids for rollout in group.rollouts)]


def prompt_cost(prompt: Prompt) -> int:
    """Return the tokens of a row that trains on the teacher's response."""
    return len(prompt.ids) + len(prompt.teacher_ids)


def balanced_shares(costs: Sequence[float], num_shares: int) -> list[list[int]]:
    """Return the items of every share, in their order; no share is empty if there are enough.

    The largest item left goes to the share that has least (longest processing time first), which
    leaves the largest share at most 4/3 - 1/(3 num_shares) of what is best.
    Source: Graham, Bounds on Multiprocessing Timing Anomalies, 1969.
    """
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    # (what a share costs, how many items it has, which it is): equal ones take turns.
    heap = [(0.0, 0, share) for share in range(num_shares)]
    for item in sorted(range(len(costs)), key=lambda i: -costs[i]):
        total, count, least = heap[0]
        heapq.heapreplace(heap, (total + costs[item], count + 1, least))
        shares[least].append(item)
    return [sorted(share) for share in shares]
