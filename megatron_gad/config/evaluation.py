"""What a run measures of its student on rows that it does not learn from."""

from dataclasses import dataclass
from typing import Literal

PACKAGED = "packaged"  # names the package's own instructions
# Metrics that a student may be chosen by.
Selectable = Literal[
    "",
    "evaluation/greedy_ngram_f1",
    "evaluation/ngram_f1",
    "evaluation/loss",
    "evaluation/instructions_strict",
    "evaluation/instructions_loose",
    "evaluation/judge_win_rate",
]
LESS_IS_BETTER = ("evaluation/loss",)


@dataclass(frozen=True)
class EvaluationConfig:
    """Measures on the rows of data.eval_path, while a run goes on.

    Attributes:
        interval: steps between evaluations, in every stage that has an engine, and at its end; 0:
            never.
        num_prompts: rows that are evaluated, the first of data.eval_path.
        select: metric by which the best student so far is kept in ``<save>/best_hf``; empty: none.
        max_length_ratio: largest ratio of the responses' length to the teacher's at which a student
            may be chosen.
        instructions: instructions that a program checks, answered greedily at every evaluation:
            "packaged", or a file; empty: none.
        judge_url: URL of a judge's endpoint, with its version: https://api.openai.com/v1. At every
            evaluation it compares the greedy responses with the teacher's, in both orders. Its key
            is in OPENAI_API_KEY. Empty: none.
        judge_model: name of the judge at the endpoint.
        judge_extra_body: JSON object with further fields of every request to the judge; null leaves
            out "temperature" (0) or "max_tokens" (2048).
    """

    interval: int = 0
    num_prompts: int = 64
    select: Selectable = ""
    max_length_ratio: float = 1.5
    instructions: str = ""
    judge_url: str = ""
    judge_model: str = ""
    judge_extra_body: str = "{}"
