"""Ranges of single values, in code and in words."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """A test that a value has to pass, and the same in words."""

    allowed: str
    holds: Callable[[float], bool]


POSITIVE = Rule("above 0", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = Rule("0 or more", lambda value: 0 <= value < math.inf)
YEAR_S = 365 * 24 * 3600
# Clocks of the system overflow at a few hundred years; sums of deadlines must not come near.
DEADLINE = Rule(f"above 0 and at most {YEAR_S} (a year)", lambda value: 0 < value <= YEAR_S)
DEADLINE_OR_NONE = Rule(f"from 0 (never) to {YEAR_S} (a year)", lambda value: 0 <= value <= YEAR_S)
GIBIBYTES = Rule("above 0 and at most 1000000", lambda value: 0 < value <= 1_000_000)
BETA = Rule("at least 0 and below 1", lambda value: 0 <= value < 1)


def violations(table: str, section: object, rules: Mapping[Any, Rule]) -> Iterator[str]:
    """Yield a message for each field that breaks its rule; None stands for a default elsewhere."""
    for name, rule in rules.items():
        value = getattr(section, name)
        if value is not None and not rule.holds(value):
            yield f"{table}.{name} = {value!r} is not allowed; give a value {rule.allowed}"
