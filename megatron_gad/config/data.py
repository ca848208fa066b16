"""Where the rows come from, and which of them are used."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataConfig:
    """Where prompts and teacher responses come from.

    Attributes:
        path: JSONL or Parquet file, a folder of them, or ``hub:NAME`` (its split "train") or
            ``hub:NAME:SPLIT``.
        eval_path: held-out rows of the same form; empty for none.
        prompt_column: a list of {"role", "content"} messages, or a string (one user message).
        teacher_column: the teacher's response, a string.
        max_prompt_tokens: longer prompts are dropped and counted.
        max_response_tokens: cap for the teacher's text and for rollouts alike, end token included.
        shuffle: a new seeded order each epoch; False keeps the file's order.
    """

    path: str = ""
    eval_path: str = ""
    prompt_column: str = "content"
    teacher_column: str = "teacher_response"
    max_prompt_tokens: int = 2048
    max_response_tokens: int = 1536
    shuffle: bool = True
