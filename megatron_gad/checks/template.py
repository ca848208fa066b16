"""What a chat template does with conversations, in words."""

from collections.abc import Iterator

from megatron_gad.data.template import TEMPLATE_DATE, ChatTemplate

QUESTION, ANSWER, RULE = "QUESTION-MARKER", "ANSWER-MARKER", "RULE-MARKER"
USER = {"role": "user", "content": QUESTION}
ASSISTANT = {"role": "assistant", "content": ANSWER}
SYSTEM = {"role": "system", "content": RULE}
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
}
SHOWN_CHARACTERS = 100


def describe_template(template: ChatTemplate, begin_token: str) -> Iterator[str]:
    """Yield what a template adds to a conversation, and what it leaves out or refuses.

    begin_token: of the tokenizer; empty if it has none.
    """
    before, _, _ = template.render([USER]).partition(QUESTION)
    added = _own_turn(template, before.removeprefix(begin_token)).strip()
    if added:
        shown = added if len(added) <= SHOWN_CHARACTERS else added[:SHOWN_CHARACTERS] + "..."
        yield f"begins a conversation without a system turn with {shown!r}"
    if template.opening != "none":
        block = "the beginning" if template.opening == "open" else "an empty block"
        yield f"writes {block} of reasoning ({template.tags.open}) where a response begins"
    if TEMPLATE_DATE.split()[-1] in added:
        yield f"writes a date, which is {TEMPLATE_DATE} on every day"
    turns = [SYSTEM, USER]
    try:
        loss = template.find_loss(turns)
    except ValueError as error:
        yield f"refuses a system turn: {error}"
    else:
        yield "does not write a system turn" if loss else "takes a system turn"
    try:
        loss = template.find_loss([USER], [TOOL])
    except ValueError as error:
        yield f"refuses tools: {error}"
    else:
        yield "does not write tools" if loss else "writes tools"


def _own_turn(template: ChatTemplate, before: str) -> str:
    """Return what stands before the user's header in the first turn, and not in a later one."""
    try:
        later = template.render([USER, ASSISTANT, USER])
    except ValueError:
        return before
    header = later.partition(ANSWER)[2].partition(QUESTION)[0]
    size = 0
    while size < min(len(before), len(header)) and before[-1 - size] == header[-1 - size]:
        size += 1
    return before[: len(before) - size]
