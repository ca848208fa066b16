"""One function per kind of instruction: does a text fulfil it?

They are of the kind of IFEval (Zhou et al. 2023, arXiv 2311.07911), and so are strict and loose.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from megatron_gad.evaluation.flaws import language_of

MANY = 10**9
_FENCE = re.compile(r"\A\s*```\w*\n(.*?)\n?```\s*\Z", re.DOTALL)


def words(text: str, at_least: int = 0, at_most: int = MANY) -> bool:
    """Count words between white space."""
    return at_least <= len(text.split()) <= at_most


def sentences(text: str, at_least: int = 0, at_most: int = MANY) -> bool:
    """Count ends of sentences: marks that white space or the end follows."""
    return at_least <= len(re.findall(r"[.!?…]+[\"')\]*_]*(?=\s|\Z)", text)) <= at_most


def paragraphs(text: str, exactly: int) -> bool:
    """Count parts between blank lines."""
    return len([part for part in re.split(r"\n\s*\n", text) if part.strip()]) == exactly


def lines(text: str, exactly: int) -> bool:
    """Count lines that are not blank."""
    return len([line for line in text.splitlines() if line.strip()]) == exactly


def bullets(text: str, exactly: int) -> bool:
    """Count lines that begin with a dash, a star or a dot."""
    return len(re.findall(r"(?m)^\s*[-*•]\s+\S", text)) == exactly


def numbered(text: str, exactly: int) -> bool:
    """Look for lines that begin with 1., 2., ... up to a number, in this order."""
    found = re.findall(r"(?m)^\s*(\d+)[.)]\s+\S", text)
    return found == [str(number) for number in range(1, exactly + 1)]


def headings(text: str, exactly: int) -> bool:
    """Count headings of Markdown."""
    return len(re.findall(r"(?m)^#{1,6} +\S", text)) == exactly


def table(text: str, columns: int) -> bool:
    """Look for a table of Markdown: a header, its rule and a row, all of so many columns."""
    rows = [line.strip() for line in text.splitlines() if line.strip().startswith("|")]
    counts = {len(row.strip("|").split("|")) for row in rows}
    has_rule = len(rows) > 1 and bool(re.fullmatch(r"[|\s:-]+", rows[1]))
    return len(rows) >= 3 and counts == {columns} and has_rule


def is_json(text: str, keys: Sequence[str] = (), items: int | None = None) -> bool:
    """Parse the whole text, which may stand in a code block.

    keys: those that an object has to have, and no others. items: the length of a list.
    """
    fenced = _FENCE.match(text)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    if keys:
        return isinstance(value, dict) and {*value} == {*keys}
    return isinstance(value, list) and len(value) == items if items is not None else True


def keywords(text: str, all_of: Sequence[str]) -> bool:
    """Look for whole words, in any case."""
    return all(_count(text, word) > 0 for word in all_of)


def forbidden(text: str, none_of: Sequence[str]) -> bool:
    """Look for whole words that must not occur, in any case."""
    return all(_count(text, word) == 0 for word in none_of) and bool(text.strip())


def occurrences(text: str, word: str, exactly: int) -> bool:
    """Count a whole word, in any case."""
    return _count(text, word) == exactly


def lowercase(text: str) -> bool:
    """Look for capital letters."""
    return text == text.lower() and any(map(str.isalpha, text))


def uppercase(text: str) -> bool:
    """Look for small letters."""
    return text == text.upper() and any(map(str.isalpha, text))


def starts_with(text: str, phrase: str) -> bool:
    """Compare the beginning, white space before it left out."""
    return text.lstrip().startswith(phrase)


def ends_with(text: str, phrase: str) -> bool:
    """Compare the end, white space behind it left out."""
    return text.rstrip().endswith(phrase)


def without(text: str, characters: str) -> bool:
    """Look for characters that must not occur."""
    return not {*characters} & {*text} and bool(text.strip())


def quoted(text: str) -> bool:
    """Look for double quotation marks around the whole."""
    inner = text.strip()
    return len(inner) > 2 and inner[0] == inner[-1] == '"'


def titled(text: str) -> bool:
    """Look for a title in double angle brackets."""
    return bool(re.search(r"<<[^<>\n]+>>", text))


def placeholders(text: str, at_least: int) -> bool:
    """Count places to fill in, in square brackets."""
    return len(re.findall(r"\[[^\[\]\n]+\]", text)) >= at_least


def one_of(text: str, choices: Sequence[str]) -> bool:
    """Compare the whole text, white space around it left out, with what may be answered."""
    return text.strip() in choices


def language(text: str, code: str) -> bool:
    """Tell the language of the whole text."""
    return language_of(text) == code


CHECKERS: Mapping[str, Callable[..., bool]] = {
    "words": words, "sentences": sentences, "paragraphs": paragraphs, "lines": lines,
    "bullets": bullets, "numbered": numbered, "headings": headings, "table": table,
    "json": is_json, "keywords": keywords, "forbidden": forbidden, "occurrences": occurrences,
    "lowercase": lowercase, "uppercase": uppercase, "starts_with": starts_with,
    "ends_with": ends_with, "without": without, "quoted": quoted, "titled": titled,
    "placeholders": placeholders, "one_of": one_of, "language": language,
}  # fmt: skip


def fulfils(text: str, check: Mapping[str, Any]) -> bool:
    """Say whether a text fulfils an instruction: {"check": name, parameters ...}."""
    parameters = {name: value for name, value in check.items() if name != "check"}
    return CHECKERS[check["check"]](text, **parameters)


def fulfils_loosely(text: str, check: Mapping[str, Any]) -> bool:
    """Say the same of a text without what often surrounds an answer.

    Its first line may go, its last, or both, and the stars of emphasis with them, as in IFEval: a
    polite introduction then does not count as a fault.
    """
    split = text.split("\n")
    parts = [text, *("\n".join(part).strip() for part in (split[1:], split[:-1], split[1:-1]))]
    return any(
        variant and fulfils(variant, check)
        for part in parts
        for variant in (part, part.replace("*", ""))
    )


def _count(text: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))
