"""Which layouts of a table are enough for most purposes."""

from collections.abc import Iterable
from dataclasses import asdict
from itertools import combinations

from megatron_gad.config.layout import ParallelConfig
from megatron_gad.models.layout_rules import model_group_size


def covering(layouts: dict[str, ParallelConfig], wanted: Iterable[str] = ()) -> tuple[str, ...]:
    """Choose some that have every pair of settings that any of them has, in the table's order.

    How many copies of the model four ranks hold counts as a setting.

    wanted: names of some to choose in any case.
    """
    pairs = {name: _pairs_of(layout) for name, layout in layouts.items()}
    chosen = set(wanted)
    left = set().union(*pairs.values()).difference(*(pairs[name] for name in chosen))
    while left:
        # Of those that bring as many the last one, which has most settings of its own.
        best = max(reversed(pairs), key=lambda name: len(pairs[name] & left))
        chosen.add(best)
        left -= pairs[best]
    return tuple(name for name in layouts if name in chosen)


def _pairs_of(layout: ParallelConfig) -> set[tuple]:
    settings = asdict(layout) | {"copies": 4 // model_group_size(layout)}
    return set(combinations(sorted(settings.items()), 2))
