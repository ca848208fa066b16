"""The first row as the models read it, and what ends a response, for ``--dry-run``."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from megatron_gad.checks.found import Models
from megatron_gad.checks.template import describe_template
from megatron_gad.checks.tokenizer import describe_reading, find_difference
from megatron_gad.data.chat import ChatCodec
from megatron_gad.data.codecs import Codecs
from megatron_gad.types import Prompt

FIRST_TOKENS, LAST_TOKENS = 40, 16
TOKEN_CHARACTERS = 24
LINE_CHARACTERS = 100

Titled = tuple[str, str]


def describe_reading_of(models: Models, codecs: Codecs, first: Prompt) -> Iterator[Titled]:
    """Yield (title, text) for each line about tokenizers, template and the first row.

    Args:
        models: with the tokenizers.
        codecs: how the run reads.
        first: the data set's first row.
    """
    codec, tokenizer = codecs.student, models.student.tokenizer.loaded
    yield "ends with", _describe_stops(tokenizer, codec)
    difference = describe_reading(models.student.tokenizer)
    if difference:
        yield "tokenizer", f"warning: {difference}"
    facts = describe_template(codec.template, tokenizer.bos_token or "")
    yield "chat template", "; ".join(facts)
    cut = ", cut" if first.teacher_truncated else ""
    yield from _tokens("first prompt", "", tokenizer, first.ids)
    yield from _tokens("first response", cut, tokenizer, first.teacher_ids)
    yield from _describe_scorer(models, codecs, first)


def _describe_scorer(models: Models, codecs: Codecs, first: Prompt) -> Iterator[Titled]:
    """Yield what the discriminator reads, and by whose tokenizer."""
    codec, scorer, own = codecs.student, codecs.scorer, models.discriminator.tokenizer
    if scorer is None:
        total = len(first.ids) + len(first.teacher_ids)
        text = (
            f"reads the two behind each other, {total} tokens; of a sampled response, the ids that "
            "its text becomes in the same way"
        )
        if models.has_own_discriminator:
            has_none = f"{models.discriminator.named} holds no tokenizer"
            text += "; " + (has_none if own.loaded is None else "its own tokenizer reads alike")
        yield "discriminator", text
        return
    text = codec.decode_response(first.teacher_ids)
    response, _ = scorer.encode_response(text, hit_cap=first.teacher_truncated)
    difference = find_difference(models.student.tokenizer, own)
    yield "discriminator", f"reads the same texts with its own tokenizer and template: {difference}"
    yield from _tokens("its prompt", "", own.loaded, first.scorer_ids)
    yield from _tokens("its response", "", own.loaded, response)


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
