"""Reward functions of a user, good and bad ones."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def lengths(rows: Rows, factor: float = 1.0) -> list[float]:
    print("what a function prints is no answer")
    return [factor * row["length"] for row in rows]


def fails_for_row_two(rows: Rows) -> list[float]:
    return [1.0 / (row["row"] - 2) for row in rows]


def not_numbers(rows: Rows) -> list[Any]:
    return [float("nan"), "x", None, 3][: len(rows)]


def too_few(rows: Rows) -> list[float]:
    return []


def sleeps(rows: Rows) -> list[float]:
    time.sleep(60)
    return [0.0 for _ in rows]


def ends_its_process(rows: Rows) -> list[float]:
    os._exit(3)
