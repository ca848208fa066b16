"""The reasoning that a response begins with, between <think> and </think>: kept or stripped."""

from typing import Literal

OPEN, CLOSE = "<think>", "</think>"


def split_reasoning(text: str) -> tuple[str, str]:
    """Return the reasoning of a response, its tags included, and the answer behind it.

    A response that lacks <think> but not </think> went on from a prompt that wrote it. One that
    lacks </think> never came to an answer.
    """
    before, closed, answer = text.partition(CLOSE)
    is_opened = text.lstrip().startswith(OPEN)
    if closed and (is_opened or OPEN not in before):
        return before + closed, answer.lstrip()
    return (text, "") if is_opened else ("", text)


def join_reasoning(reasoning: str, answer: str) -> str:
    """Return reasoning that stands beside an answer, and the answer, as one response."""
    if not reasoning.strip() or split_reasoning(answer)[0]:
        return answer
    return f"{OPEN}\n{reasoning.strip()}\n{CLOSE}\n\n{answer}"


def continue_prompt(text: str, opening: Literal["none", "open", "closed"], space: str) -> str:
    """Return a teacher's response, its reasoning kept, as it goes on from the prompt.

    opening: what the prompt writes of the block of reasoning: none of it, its beginning, or an
        empty one.
    space: the white space after the beginning.

    Raises ValueError if the prompt left no room for reasoning.
    """
    reasoning, _ = split_reasoning(text)
    if not reasoning:
        return text
    if opening == "closed":
        raise ValueError(
            "the teacher's response has reasoning, but the chat template ends it before the "
            "response begins; set data.reasoning = 'strip', or let the template leave room for "
            "it with data.chat_template_kwargs"
        )
    is_opened = text.lstrip().startswith(OPEN)
    if opening == "open":
        return text.lstrip().removeprefix(OPEN).removeprefix(space) if is_opened else text
    return text if is_opened else f"{OPEN}\n{text.lstrip()}"
