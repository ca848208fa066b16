"""Marks that one side of the game has throughout: the discriminator would learn nothing else."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from megatron_gad.data.chat import ChatCodec
from megatron_gad.types import Prompt

SAMPLE_ROWS = 1000  # responses that are looked at, spread evenly over the data
MARKED_SHARE = 0.03  # of the rows, from which on a mark is told
MOST = 0.5  # of the rows, from which on white space is
SHOWN_CHARACTERS = 40
# A cap of at least so many tokens, so many times what so many responses have, is far from them.
LARGE_CAP, FAR, MOST_LENGTHS = 256, 8, 0.95
# Control tokens of common models, whose text a data set may have kept.
CONTROL = r"<\|[A-Za-z][\w ]*\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>"
ENTITY = re.compile(r"&(?:lt|gt|amp|quot|nbsp|#39|#x27|#34);")
OPENING = re.compile(r"\s*(#+\s*)?(assistant|ai|response)\s*(:|\n)", re.IGNORECASE)
DROPPED = {
    "num_dropped_empty_response": "have no response; collect them again, or leave them out",
    "num_dropped_empty_prompt": "have no prompt; look at the column that holds it",
    "num_dropped_long_prompt": "have a prompt of more than data.max_prompt_tokens; raise it if "
    "there is memory for it",
    "num_dropped_tool_call_response": "have a response that only calls a tool, which is not text "
    "to train on",
    "num_dropped_ends_with_assistant": "have a conversation that ends with an assistant's turn; "
    "end it before, or leave the column of the responses out",
}


def find_marks(
    prompts: Sequence[Prompt],
    counts: Mapping[str, int],
    codec: ChatCodec,
    scorer: ChatCodec | None = None,
) -> tuple[str, ...]:
    """Return a line for each mark: how many rows have it, an example, and the remedy.

    counts: of all rows, as ``LoadedPrompts`` has them.
    scorer: of a discriminator with a tokenizer of its own.
    """
    sample = prompts[:: -(-len(prompts) // SAMPLE_ROWS)]
    lengths = [*_marks_of_lengths(sample, codec.max_response_tokens)]
    if scorer is not None:
        lengths += _marks_of_scored_lengths(sample, codec, scorer)
    return (*_marks_of_counts(counts), *lengths, *_marks_of_texts(sample, codec))


def _marks_of_counts(counts: Mapping[str, int]) -> Iterator[str]:
    for name, what in DROPPED.items():
        if counts[name] > MARKED_SHARE * counts["num_rows"]:
            yield f"{_share(counts[name], counts['num_rows'])} rows are left out: they {what}"
    truncated, at_source = counts["num_teacher_truncated"], counts["num_teacher_cut_at_source"]
    if truncated > MARKED_SHARE * counts["num_prompts"]:
        yield (
            f"{_share(truncated, counts['num_prompts'])} teacher responses are cut, {at_source:,} "
            "where they come from and the others by data.max_response_tokens: the student does not "
            "learn how they end; raise the limit, or leave such rows out"
        )


def _marks_of_lengths(sample: Sequence[Prompt], cap: int) -> Iterator[str]:
    """Yield a line if the cap is far from the teacher's lengths: rollouts alone would reach it."""
    lengths = sorted(len(prompt.teacher_ids) for prompt in sample)
    usual = lengths[int(MOST_LENGTHS * (len(lengths) - 1))]
    if cap >= LARGE_CAP and FAR * usual < cap:
        yield (
            f"{MOST_LENGTHS:.0%} of the teacher responses looked at have {usual} tokens at most, "
            f"and data.max_response_tokens = {cap} lets a student that does not end go on for "
            f"{cap // usual} times as long, which costs time and tells it from the teacher; lower "
            "it"
        )


def _marks_of_scored_lengths(
    sample: Sequence[Prompt], codec: ChatCodec, scorer: ChatCodec
) -> Iterator[str]:
    """Yield a line if the discriminator's tokenizer cuts responses that the student's does not."""
    whole = [prompt for prompt in sample if not prompt.teacher_truncated]
    texts = [codec.decode_response(prompt.teacher_ids) for prompt in whole]
    num_cut = sum(is_cut for _, is_cut in scorer.encode_responses(texts))
    if num_cut > MARKED_SHARE * len(sample):
        yield (
            f"{_share(num_cut, len(sample))} teacher responses looked at have more than "
            f"data.max_response_tokens = {scorer.max_response_tokens} tokens of the "
            "discriminator's own tokenizer, which does not see how they end; raise the limit, or "
            "take a discriminator with the student's tokenizer"
        )


def _marks_of_texts(sample: Sequence[Prompt], codec: ChatCodec) -> Iterator[str]:
    tokens = sorted(map(re.escape, codec.control_tokens), key=len, reverse=True)
    control = re.compile("|".join([*tokens, CONTROL]))
    yield from _told(
        sample,
        lambda text: (found := control.search(text)) and text[max(0, found.start() - 9) :],
        "spell out control tokens, which no student writes as text; remove them from the data",
    )
    yield from _told(
        sample,
        lambda text: text if OPENING.match(text) else None,
        "begin with a header that the prompt wrote already; remove it from the data",
    )
    yield from _told(
        sample,
        lambda text: (found := ENTITY.search(text)) and text[max(0, found.start() - 9) :],
        "hold characters as HTML writes them, such as &lt;; unescape them (html.unescape)",
    )
    yield from _told(
        sample,
        lambda text: text if "\\n" in text and "\n" not in text else None,
        "write line breaks as a backslash and an n; they were escaped twice: make them line breaks",
    )
    yield from _told(
        sample,
        lambda text: text if text != text.strip() else None,
        "begin or end with white space, which the student would have to learn; strip it in the "
        "data if it is not the teacher's",
        MOST,
    )
    tags = codec.template.tags
    if codec.template.opening == "open":
        yield from _told(
            sample,
            lambda text: None if tags.close in text else text,
            f"have no reasoning, but the student's chat template opens {tags.open}; switch it off "
            "with data.chat_template_kwargs or in the template's file, or take a teacher that "
            "reasons",
        )
    switch = codec.template.unused_switch
    if switch and not any(tags.close in prompt.teacher_text for prompt in sample):
        yield (
            f"the student's chat template lets it reason unless {switch} is false, and no teacher "
            "response that was looked at has reasoning: the discriminator knows the student by its "
            f"{tags.open}; set data.chat_template_kwargs = {{{switch} = false}}"
        )


def _told(
    sample: Sequence[Prompt],
    mark_of: Callable[[str], str | None],
    what: str,
    share: float = MARKED_SHARE,
) -> Iterator[str]:
    """Yield a line if a mark is frequent. mark_of: returns what to show of a marked text."""
    found = [(each.index, mark) for each in sample if (mark := mark_of(each.teacher_text))]
    if len(found) > share * len(sample):
        index, text = found[0]
        shown = repr(text[:SHOWN_CHARACTERS]) + ("..." if len(text) > SHOWN_CHARACTERS else "")
        numbers = _share(len(found), len(sample))
        yield f"{numbers} teacher responses looked at {what} (data row {index}: {shown})"


def _share(count: int, total: int) -> str:
    return f"{count:,} of {total:,} ({count / total:.1%})"
