"""What a run measures of its student on rows that it does not learn from."""

from dataclasses import dataclass
from typing import Literal

PACKAGED = "packaged"  # names the package's own instructions
# What a student may be chosen by, and whether more of it is better.
SELECTABLE = {
    "evaluation/greedy_ngram_f1": True,
    "evaluation/ngram_f1": True,
    "evaluation/loss": False,
    "evaluation/instructions_strict": True,
    "evaluation/instructions_loose": True,
}
Selectable = Literal[
    "",
    "evaluation/greedy_ngram_f1",
    "evaluation/ngram_f1",
    "evaluation/loss",
    "evaluation/instructions_strict",
    "evaluation/instructions_loose",
]


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
    """

    interval: int = 0
    num_prompts: int = 64
    select: Selectable = ""
    max_length_ratio: float = 1.5
    instructions: str = ""
