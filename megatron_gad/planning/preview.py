"""The first row as the models read it, and what ends a response, for ``--dry-run``."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_gad.checks.template import describe_template
from megatron_gad.checks.tokenizer import check_texts, describe_reading, read_tokenizer
from megatron_gad.data.chat import ChatCodec
from megatron_gad.models.families import load_hf_config
from megatron_gad.types import Prompt

FIRST_TOKENS, LAST_TOKENS = 40, 16
TOKEN_CHARACTERS = 24
LINE_CHARACTERS = 100

Titled = tuple[str, str]


def describe_reading_of(
    folder: str, codec: ChatCodec, prompts: Sequence[Prompt]
) -> Iterator[Titled]:
    """Yield (title, text) for each line about tokenizer, template and the first row.

    Args:
        folder: the student's.
        codec: its tokenizer and template as the run uses them.
        prompts: the data set's, of which there is one at least.

    Raises:
        ValueError: the tokenizer loses the text of the first rows.
    """
    for problem in check_texts(codec, prompts):
        raise ValueError(problem)
    found = read_tokenizer(Path(folder), load_hf_config(folder))
    tokenizer = found.loaded
    yield "ends with", _describe_stops(tokenizer, codec)
    difference = describe_reading(found)
    if difference:
        yield "tokenizer", f"warning: {difference}"
    facts = describe_template(codec.template, tokenizer.bos_token or "")
    yield "chat template", "; ".join(facts)
    first = prompts[0]
    cut = ", cut" if first.teacher_truncated else ""
    yield from _tokens("first prompt", "", tokenizer, first.ids)
    yield from _tokens("first response", cut, tokenizer, first.teacher_ids)
    total = len(first.ids) + len(first.teacher_ids)
    yield (
        "discriminator",
        f"reads the two behind each other, {total} tokens; of a sampled response, the ids that its "
        "text becomes in the same way",
    )


def _describe_stops(tokenizer: Any, codec: ChatCodec) -> str:
    """Return what ends a response."""
    first, *others = (f"{tokenizer.decode([number])!r} ({number})" for number in codec.stop_ids)
    return f"{first}; sampling also stops at {', '.join(others)}" if others else first


def _tokens(title: str, note: str, tokenizer: Any, ids: Sequence[int]) -> Iterator[Titled]:
    """Yield the first and last tokens of a row, over as many lines as they take."""
    shown = [*map(tokenizer.decode, [[number] for number in ids])]
    if len(shown) > FIRST_TOKENS + LAST_TOKENS:
        left_out = len(shown) - FIRST_TOKENS - LAST_TOKENS
        rest = f"... {left_out} more ..."
        shown = [*shown[:FIRST_TOKENS], rest, *shown[-LAST_TOKENS:]]
    text = "|".join(_escaped(token) for token in shown)
    lines = textwrap.wrap(text, LINE_CHARACTERS, drop_whitespace=False, break_on_hyphens=False)
    yield title, f"{len(ids)} tokens{note}:"
    yield from (("", line) for line in lines)


def _escaped(token: str) -> str:
    """Return a token on one line, of bounded length; spaces stay."""
    text = token[:TOKEN_CHARACTERS].encode("unicode_escape").decode("ascii")
    return text if token.isascii() else token[:TOKEN_CHARACTERS].replace("\n", "\\n")
