"""Which rows a microbatch holds: few enough tokens, and little padding among them.

A *unit* is what must not be cut: a row, or a whole group, of any number of rows. Every unit is in
exactly one microbatch, and equal lengths give equal microbatches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class MicrobatchBound:
    """How large a microbatch may get.

    rows: the most rows; padded ones are sorted by length, packed ones stay in the order of the
        batch. Not read if max_tokens is set. A unit of more rows is a microbatch of its own.
    max_tokens: the most tokens that the model runs over; the rows are sorted by length. A unit of
        more tokens is a microbatch of its own. None: bounded by rows.
    multiple_of: the width of padded rows, or the tokens of a packed microbatch, are rounded up to
        a multiple of this.
    is_packed: rows stand one behind the other without padding; False: all are as wide as the
        longest.
    shares_prompts: rows with equal prompts have it once in a microbatch. So whoever counts their
        tokens counts it at one of them.
    """

    rows: int
    max_tokens: int | None = None
    multiple_of: int = 1
    is_packed: bool = False
    shares_prompts: bool = False

    def in_tokens(self, longest: int) -> "MicrobatchBound":
        """Return the bound by tokens that as many whole rows of a length have at most.

        Rows with equal prompts have fewer tokens than whole ones, so that more of them fit.
        """
        if self.max_tokens is not None:
            return self
        return replace(self, max_tokens=self.num_tokens([longest] * self.rows))

    def holds(self, lengths: Sequence[int]) -> bool:
        """Return whether rows of these lengths fit into one microbatch."""
        if self.max_tokens is None:
            return len(lengths) <= self.rows
        return self.num_tokens(lengths) <= self.max_tokens

    def num_tokens(self, lengths: Sequence[int]) -> int:
        """Return the tokens that a model runs over for rows of these lengths."""
        num_rows, width = (1, sum(lengths)) if self.is_packed else (len(lengths), max(lengths))
        return num_rows * -(-width // self.multiple_of) * self.multiple_of


def partition_units(units: Sequence[Sequence[int]], bound: MicrobatchBound) -> list[list[int]]:
    """Return the units of every microbatch by their numbers, each unit in exactly one.

    units: the lengths, in real tokens, of the rows of each.
    """
    # Padded rows are as wide as the longest; of packed ones only the sum counts.
    order = _longest_first([sum(unit) if bound.is_packed else max(unit) for unit in units])
    is_by_rows = bound.max_tokens is None
    if is_by_rows and bound.is_packed:  # where sorting would only put the longest together
        order = list(range(len(units)))

    def fits(part: Sequence[int]) -> bool:
        return bound.holds([length for u in part for length in units[u]])

    return (_first_fit if bound.is_packed and not is_by_rows else _next_fit)(order, fits)


def _longest_first(sizes: Sequence[int]) -> list[int]:
    """Return the units by falling size; equal ones in their order."""
    return sorted(range(len(sizes)), key=lambda u: -sizes[u])


def _next_fit(order: Sequence[int], fits: Callable[[Sequence[int]], bool]) -> list[list[int]]:
    """Fill one part after the other, so that units of similar length meet."""
    parts: list[list[int]] = []
    for u in order:
        if parts and fits([*parts[-1], u]):
            parts[-1].append(u)
        else:
            parts.append([u])
    return parts


def _first_fit(order: Sequence[int], fits: Callable[[Sequence[int]], bool]) -> list[list[int]]:
    """Put every unit into the first part that has room for it."""
    parts: list[list[int]] = []
    for u in order:
        part = next((part for part in parts if fits([*part, u])), None)
        if part is None:
            parts.append([u])
        else:
            part.append(u)
    return parts
