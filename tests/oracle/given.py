"""Rewards as a user writes them, for the runs that are held against the oracle."""

from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def vowels(rows: Rows, factor: float = 1.0) -> list[float]:
    """Return how many vowels a response has."""
    return [factor * sum(letter in "aeiou" for letter in row["response"]) for row in rows]


def brevity(rows: Rows) -> list[int]:
    """Return minus the tokens of a response, the end token included."""
    return [-row["length"] for row in rows]


def odd(rows: Rows) -> list[bool]:
    """Return whether a response has an odd number of tokens."""
    return [row["length"] % 2 == 1 for row in rows]
