"""The reasoning that a response begins with, between two tags: kept or stripped."""

from typing import Literal, NamedTuple


class Tags(NamedTuple):
    """What models write before and after their reasoning."""

    open: str
    close: str


THINK = Tags("<think>", "</think>")
# Of Qwen3, DeepSeek and most others; of prompts that ask for reasoning; Kimi's; Magistral's; and
# the channels of gpt-oss, whose reasoning ends where the final one begins.
TAGS = (
    THINK,
    Tags("<thinking>", "</thinking>"),
    Tags("<reasoning>", "</reasoning>"),
    Tags("◁think▷", "◁/think▷"),
    Tags("[THINK]", "[/THINK]"),
    Tags("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)


def tags_of(template: str) -> Tags:
    """Return the tags that a chat template writes; those of most models if it writes none."""
    return next((tags for tags in TAGS if tags.close in template), THINK)


def split_reasoning(text: str) -> tuple[str, str]:
    """Return the reasoning of a response, its tags included, and the answer behind it.

    A response that lacks <think> but not </think> went on from a prompt that wrote it. One that
    lacks the closing tag never came to an answer.
    """
    tags = _opening_tags(text)
    if tags is not None:
        before, closed, answer = text.partition(tags.close)
        return (before + closed, answer.lstrip()) if closed else (text, "")
    before, closed, answer = text.partition(THINK.close)
    if closed and THINK.open not in before:
        return before + closed, answer.lstrip()
    return "", text


def join_reasoning(reasoning: str, answer: str, tags: Tags = THINK) -> str:
    """Return reasoning that stands beside an answer, and the answer, as one response."""
    if not reasoning.strip() or split_reasoning(answer)[0]:
        return answer
    return f"{tags.open}\n{reasoning.strip()}\n{tags.close}\n\n{answer}"


def continue_prompt(
    text: str, opening: Literal["none", "open", "closed"], space: str, tags: Tags = THINK
) -> str:
    """Return a teacher's response, its reasoning kept, as it goes on from the prompt.

    opening: what the prompt writes of the block of reasoning: none of it, its beginning, or an
        empty one.
    space: the white space after the beginning.
    tags: those that the student writes; others of the teacher's become these.

    Raises ValueError if the prompt left no room for reasoning.
    """
    text = _with_tags(text, tags)
    reasoning, _ = split_reasoning(text)
    if not reasoning:
        return text
    if opening == "closed":
        raise ValueError(
            "the teacher's response has reasoning, but the chat template ends it before the "
            "response begins; set data.reasoning = 'strip', or let the template leave room for "
            "it with data.chat_template_kwargs"
        )
    is_opened = text.lstrip().startswith(tags.open)
    if opening == "open":
        return text.lstrip().removeprefix(tags.open).removeprefix(space) if is_opened else text
    return text if is_opened else f"{tags.open}\n{text.lstrip()}"


def _opening_tags(text: str) -> Tags | None:
    """Return the tags that a response begins with."""
    return next((tags for tags in TAGS if text.lstrip().startswith(tags.open)), None)


def _with_tags(text: str, tags: Tags) -> str:
    """Return a response whose reasoning stands between other tags."""
    own = _opening_tags(text)
    if own is None or own == tags:
        return text
    inner, closed, answer = text.lstrip().removeprefix(own.open).partition(own.close)
    if not closed:
        return tags.open + inner
    inner = inner.removesuffix("<|end|><|start|>assistant")  # of gpt-oss, between its channels
    return join_reasoning(inner, answer.lstrip(), tags)
