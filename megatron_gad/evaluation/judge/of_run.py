"""The judge of a run: it compares the student's answers of one evaluation with the teacher's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_gad.config.evaluation import EvaluationConfig
from megatron_gad.environment import ENDPOINT_KEY, secret
from megatron_gad.evaluation.judge.calls import Judge, Spent
from megatron_gad.evaluation.judge.pairwise import compare, orders
from megatron_gad.evaluation.judge.prompt_files import JudgePrompts
from megatron_gad.evaluation.options import EndpointOptions
from megatron_gad.evaluation.record_file import RecordFile

# Training waits, so that less patience is spent on a judge that does not answer.
RETRIES, STOP_AFTER_FAILURES = 3, 8
STUDENT = "student"


@dataclass(frozen=True)
class Compared:
    """A conversation as the judge reads it, with what student and teacher answer."""

    conversation: str
    answer: str
    teacher: str


@dataclass(frozen=True)
class Opinion:
    """What the judge says of all pairs; of those alone that have a verdict in both orders.

    win_rate: mean preference for the student, where 1 wins in both orders and a tie is a half.
    order_disagreement: share of pairs with another outcome in the other order.
    num_missing: pairs without a verdict in both orders.
    problem: why there is none at all, or not all was asked; the rates then say nothing.
    """

    win_rate: float
    order_disagreement: float
    num_missing: int
    problem: str
    spent: Spent


def judge_pairs(
    config: EvaluationConfig, kept: Path, most_s: float, pairs: Sequence[Compared]
) -> Opinion:
    """Ask the judge of a run about pairs, as far as it was not asked before.

    kept: file of all verdicts so far. most_s: seconds after which nothing is waited for.

    Raises:
        ValueError: the file holds something else, or the key cannot be used.
        OSError: the file cannot be written.
    """
    options = EndpointOptions(
        judge_url=config.judge_url,
        judge_model=config.judge_model,
        judge_extra_body=config.judge_extra_body,
        retries=RETRIES,
        stop_after_failures=STOP_AFTER_FAILURES,
    )
    # Verdicts that could not be read are asked for in a second round.
    limits = replace(options.limits, most_s=most_s / 2)
    target = options.judge(secret(ENDPOINT_KEY))
    with RecordFile(kept) as file:
        judge = Judge(file, target, options.patience, limits, show_progress=False)
        found = compare(
            judge,
            JudgePrompts(),
            [pair.conversation for pair in pairs],
            {STUDENT: [pair.answer for pair in pairs]},
            [pair.teacher for pair in pairs],
        )[STUDENT]
    seen, noise, spent = [pair for pair in found if pair is not None], orders(found), judge.spent
    num_missing = len(found) - len(seen)
    if noise is None or spent.stopped:
        why = spent.stopped or next(iter(spent.reasons), "no verdict could be read")
        return Opinion(0.0, 0.0, num_missing, why, spent)
    rate = sum(pair.preference for pair in seen) / len(seen)
    return Opinion(rate, noise.disagreement, num_missing, "", spent)
