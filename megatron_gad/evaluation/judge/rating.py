"""The paper's protocol: the judge answers itself, then rates both answers from 1 to 10 in one call.

    score = 100 * student / (student + reference)

so that 50 is as good as the judge's own answer (arXiv 2511.10643, section 4). The reference always
comes first.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_gad.evaluation.judge.calls import Judge
from megatron_gad.evaluation.judge.prompt_files import JudgePrompts

LOWEST, HIGHEST = 1.0, 10.0
_RATINGS = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*,\s*(\d+(?:\.\d+)?)\s*\]\]")


@dataclass(frozen=True)
class Rating:
    """What the judge gave to its own answer and to the student's."""

    reference: float
    student: float

    @property
    def score(self) -> float:
        """The student's share of both, from 9.1 to 90.9."""
        return 100.0 * self.student / (self.student + self.reference)


def rate(
    judge: Judge,
    prompts: JudgePrompts,
    conversations: Sequence[str],
    answers: Mapping[str, Sequence[str]],
) -> dict[str, list[Rating | None]]:
    """Return student -> rating of each answer; None if there is no verdict.

    conversations: what was answered. answers: student -> answer to each conversation.
    """
    asked = {
        str(place): prompts.write("reference.txt", conversation=text)
        for place, text in enumerate(conversations)
    }
    references = judge.ask(asked, _non_blank, "judge's own answers").given
    calls = {
        f"{place}/{student}": prompts.write(
            "rating.txt",
            conversation=conversations[place],
            reference=references[str(place)],
            answer=text,
        )
        for student, texts in answers.items()
        for place, text in enumerate(texts)
        if str(place) in references
    }
    given = judge.ask(calls, read_rating, "ratings").given
    return {
        student: [given.get(f"{place}/{student}") for place in range(len(conversations))]
        for student in answers
    }


def read_rating(text: str) -> Rating | None:
    """Return the ratings that a verdict ends with; None for none, several, or others than 1-10."""
    found = {*_RATINGS.findall(text)}
    if len(found) != 1:
        return None
    reference, student = map(float, found.pop())
    is_sound = all(LOWEST <= value <= HIGHEST for value in (reference, student))
    return Rating(reference, student) if is_sound else None


def _non_blank(text: str) -> str | None:
    return text if text.strip() else None
