"""Reward functions to name in [[rewards]]. Each takes a batch of responses and returns numbers.

A row is a dict: "response" and "teacher" are texts, "length" and "teacher_length" tokens with the
end token, "truncated" says whether the cap cut the response, "messages" is the conversation before
it, "columns" holds those of data.reward_columns, and "row" is the row's number in the data.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def length(rows: Rows, tolerance: float = 0.0) -> list[float]:
    """Return minus the logarithm of how many times a response is too long or too short.

        -max(0, |log(length / teacher_length)| - log(1 + tolerance))

    tolerance: 0.2 lets a response be 20 % longer than the teacher's, or shorter by as much.
    """
    allowed = math.log1p(tolerance)
    return [
        -max(0.0, abs(math.log(max(1, r["length"]) / max(1, r["teacher_length"]))) - allowed)
        for r in rows
    ]


def overlong(rows: Rows, cap: int, margin: int) -> list[float]:
    """Return 0 up to ``cap - margin`` tokens, and then a line down to -1 at ``cap``.

    The soft punishment of DAPO (arXiv 2503.14476, eq. 13).
    """
    return [min(0.0, max(-1.0, (cap - margin - r["length"]) / margin)) for r in rows]


def repetition(rows: Rows, n: int = 3) -> list[float]:
    """Return minus the share of a response's runs of n words that came before in it."""
    return [-_repeated_share(r["response"].split(), n) for r in rows]


def matches(rows: Rows, pattern: str) -> list[float]:
    """Return 1 for a response that the regular expression matches as a whole, else 0.

    A dot matches line ends, too.
    """
    compiled = re.compile(pattern, re.DOTALL)
    return [float(compiled.fullmatch(r["response"].strip()) is not None) for r in rows]


def json_schema(rows: Rows, schema: str) -> list[float]:
    """Return 1 for a response that is JSON and fits a schema, else 0.

    schema: file of the JSON schema. The package ``jsonschema`` is needed.
    """
    import jsonschema  # noqa: PLC0415 - not one of the package's requirements

    validator = jsonschema.Draft202012Validator(json.loads(Path(schema).read_text("utf-8")))
    return [float(_fits(validator, r["response"])) for r in rows]


def exact_match(rows: Rows, column: str, pattern: str = "") -> list[float]:
    """Return 1 for a response whose answer is what a column of its row says, else 0.

    column: one of data.reward_columns. pattern: a regular expression whose last match in the
    response is the answer, or its first group if it has one; without it the whole response is.
    White space around either does not count.
    """
    return [
        float(_answer(r["response"], pattern).strip() == str(r["columns"][column]).strip())
        for r in rows
    ]


def _repeated_share(words: Sequence[str], n: int) -> float:
    runs = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0


def _fits(validator: Any, text: str) -> bool:
    try:
        return validator.is_valid(json.loads(text))
    except ValueError:
        return False


def _answer(text: str, pattern: str) -> str:
    if not pattern:
        return text
    found = [*re.finditer(pattern, text)]
    if not found:
        return ""
    return found[-1][1 if found[-1].re.groups else 0] or ""
