"""The judge's verdicts on all students, as numbers for each prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_gad.evaluation.answers import Answered
from megatron_gad.evaluation.items import Item
from megatron_gad.evaluation.judge.calls import Judge
from megatron_gad.evaluation.judge.pairwise import compare, orders
from megatron_gad.evaluation.judge.prompt_files import JudgePrompts, conversation_text
from megatron_gad.evaluation.judge.rating import rate
from megatron_gad.evaluation.length_control import Compared, length_controlled
from megatron_gad.evaluation.measures import TEACHER_ROW, Measured
from megatron_gad.evaluation.options import TEACHER

Answers = Mapping[str, Sequence[Sequence[Answered]]]


@dataclass(frozen=True)
class Court:
    """A judge with its prompts, and the baseline of pairs: the teacher, or a student's name."""

    judge: Judge
    prompts: JudgePrompts
    against: str


def add_ratings(
    court: Court, items: Sequence[Item], answers: Answers, measured: Mapping[str, Measured]
) -> None:
    """Add "score" for each prompt; the teacher is rated as well, if it answered all of them."""
    conversations = [conversation_text(item.messages) for item in items]
    texts = {name: [each[0].text for each in given] for name, given in answers.items()}
    if all(item.teacher for item in items):
        texts[TEACHER_ROW] = [item.teacher[0].text for item in items]
    for name, ratings in rate(court.judge, court.prompts, conversations, texts).items():
        scores = [np.nan if rating is None else rating.score for rating in ratings]
        measured[name].per_prompt["score"] = np.array(scores, np.float64)


def add_preferences(
    court: Court,
    items: Sequence[Item],
    answers: Answers,
    measured: Mapping[str, Measured],
    generator: np.random.Generator,
) -> None:
    """Add "win" for each prompt: 1 it wins in both orders, 0 it loses in both.

    With it come the rate at equal length and what the order of the answers did.
    """
    if court.against == TEACHER:
        numbers = [number for number, item in enumerate(items) if item.teacher]
        baseline = [items[number].teacher[0].text for number in numbers]
    else:
        numbers = [*range(len(items))]
        baseline = [each[0].text for each in answers[court.against]]
    others = {
        name: [given[number][0].text for number in numbers]
        for name, given in answers.items()
        if name != court.against
    }
    if not numbers or not others:
        return
    conversations = [conversation_text(items[number].messages) for number in numbers]
    pairs = compare(court.judge, court.prompts, conversations, others, baseline)
    compared: dict[str, Compared] = {}
    for name, each in pairs.items():
        wins = np.full(len(items), np.nan)
        wins[numbers] = [np.nan if pair is None else pair.preference for pair in each]
        measured[name].per_prompt["win"] = wins
        lengths = [len(text) - len(b) for text, b in zip(others[name], baseline, strict=True)]
        compared[name] = Compared(wins[numbers], np.array(lengths, np.float64))
        noise = orders(each)
        if noise is not None:
            measured[name].whole["order_disagreement"] = noise.disagreement
            measured[name].whole["first_answer_wins"] = noise.first_wins
    _control_lengths(compared, measured, generator)


def _control_lengths(
    compared: Mapping[str, Compared],
    measured: Mapping[str, Measured],
    generator: np.random.Generator,
) -> None:
    seen = {name: each for name, each in compared.items() if not np.isnan(each.preferences).all()}
    if not seen:
        return
    for name, found in zip(seen, length_controlled([*seen.values()], generator), strict=True):
        measured[name].intervals["win_at_equal_length"] = found.rate
        measured[name].whole["longer_than_baseline"] = found.share_longer
        if found.extrapolates:
            share = 100 * found.share_longer
            measured[name].flags.append(
                f"win_at_equal_length extrapolates: {share:.0f} % of the answers are longer than "
                "what they are compared with, so that equal length was hardly seen"
            )
