"""Where the rows come from, and which of them are used."""

from dataclasses import dataclass, field
from typing import Literal

Reasoning = Literal["keep", "strip"]
TemplateValue = bool | int | float | str


@dataclass(frozen=True)
class DataConfig:
    """Where prompts and teacher responses come from.

    Attributes:
        path: JSONL, JSON, Parquet or Arrow file, a folder of them, or ``hub:NAME`` (its split
            "train") or ``hub:NAME:SPLIT``.
        eval_path: held-out rows, named like ``path``. Of a folder, the files named test, validation
            or eval are read, if there are any. Empty: none.
        weights: how often an epoch has the rows of a file of the folder, such as
            {"strong.jsonl" = 3}; once if it is not named. Held-out rows come once.
        prompt_column: column with the conversation: messages, or text (one user message). If it is
            missing, the columns of "messages", ShareGPT and Alpaca rows are recognised.
        teacher_column: the teacher's response, or a list of them.
        reward_columns: further columns that every row must have; the functions of [[rewards]] get
            them.
        max_prompt_tokens: longest prompt. Rows with longer ones are dropped and counted.
        max_response_tokens: longest response, the teacher's and the student's, end token included.
            Longer ones are cut.
        system_prompt: system turn of conversations that have none; empty: none is added.
        chat_template_kwargs: arguments of the student's chat template, such as
            {enable_thinking = false}; a name that the template never reads is refused.
        reasoning: what becomes of the reasoning that a response begins with, in <think> or beside
            the teacher's answer. "keep" trains on it; "strip" leaves it out of the teacher's
            response and of what the discriminator reads of the student's.
        shuffle: a new seeded order each epoch; false keeps the file's order.
    """

    path: str = ""
    eval_path: str = ""
    weights: dict[str, int] = field(default_factory=dict[str, int])
    prompt_column: str = "content"
    teacher_column: str = "teacher_response"
    reward_columns: tuple[str, ...] = ()
    max_prompt_tokens: int = 2048
    max_response_tokens: int = 1536
    system_prompt: str = ""
    chat_template_kwargs: dict[str, TemplateValue] = field(default_factory=dict[str, TemplateValue])
    reasoning: Reasoning = "keep"
    shuffle: bool = True
