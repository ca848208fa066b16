"""Curves as numbers: where each step stands on the horizontal axis, thinned and smoothed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_gad.reporting.run_record import StageSpan, finite_values, is_finite_number

# More points than this in a stage are averaged in neighbourhoods: a page cannot show them.
MAX_POINTS = 240
# A stage gets at least this share of the axis, so that a short game is not lost beside a long
# stage before it.
MIN_STAGE_WIDTH = 0.22
NUM_TICKS = 6

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class StageAxis:
    """A horizontal axis from 0 to 1 on which every stage has room.

    spans: the stages shown, in order.
    edges: [len(spans) + 1] positions where they begin, and where the last one ends.
    """

    spans: tuple[StageSpan, ...]
    edges: tuple[float, ...]

    def position(self, index: int, steps: Floats) -> Floats:
        """Return where steps of the span at an index stand."""
        span = self.spans[index]
        num_steps = span.last_step - span.first_step + 1
        share = (steps - span.first_step + 0.5) / num_steps
        return self.edges[index] + share * (self.edges[index + 1] - self.edges[index])

    def ticks(self) -> list[tuple[float, int]]:
        """Return (position, step) of the numbers to write under the axis."""
        chosen: list[tuple[float, int]] = []
        for index, span in enumerate(self.spans):
            width = self.edges[index + 1] - self.edges[index]
            for step in _round_steps(span.first_step, span.last_step, width * NUM_TICKS):
                position = float(self.position(index, np.array(step, dtype=float)))
                if not chosen or position - chosen[-1][0] >= 0.6 / NUM_TICKS:
                    chosen.append((position, step))
        return chosen


@dataclass(frozen=True)
class Segment:
    """A curve within one stage.

    positions, steps: [N] of its points; a step is the last of those that a point averages.
    values: [N] means; spreads: [N] means of the standard deviation, empty where there is none.
    """

    positions: Floats
    steps: Floats
    values: Floats
    spreads: Floats


def build_axis(spans: tuple[StageSpan, ...]) -> StageAxis:
    """Share the axis among stages by their steps, with a least width for each."""
    num_steps = np.array([span.last_step - span.first_step + 1 for span in spans], dtype=float)
    least = min(MIN_STAGE_WIDTH, 0.9 / len(spans))
    widths = least + (1 - least * len(spans)) * num_steps / num_steps.sum()
    return StageAxis(spans, (0.0, *np.cumsum(widths).tolist()))


def build_segment(axis: StageAxis, index: int, key: str, spread: str = "") -> Segment | None:
    """Return a curve within the span at an index; None where the span has no number of it."""
    records = [r for r in axis.spans[index].records if is_finite_number(r.get(key))]
    if not records:
        return None
    steps = np.array([record["step"] for record in records], dtype=float)
    values = np.array([record[key] for record in records], dtype=float)
    spreads = np.array(finite_values(records, spread) if spread else [])
    if len(spreads) < len(records):
        spreads = np.array([])
    starts = np.arange(0, len(records), -(-len(records) // MAX_POINTS))
    last = np.append(starts[1:], len(records)) - 1
    return Segment(
        axis.position(index, steps[last]),
        steps[last],
        _means(values, starts),
        _means(spreads, starts),
    )


def _means(values: Floats, starts: NDArray[np.intp]) -> Floats:
    """Average the neighbourhoods that begin at starts."""
    if len(values) == 0:
        return values
    return np.add.reduceat(values, starts) / np.diff(np.append(starts, len(values)))


def smoothed(values: Floats) -> Floats:
    """Return the running mean over about a sixteenth of a curve, [N]; short curves as they are."""
    width = len(values) // 16
    if width < 3:
        return values
    kernel = np.ones(2 * (width // 2) + 1)
    counts = np.convolve(np.ones_like(values), kernel, mode="same")
    return np.convolve(values, kernel, mode="same") / counts


def _round_steps(first: int, last: int, num_wanted: float) -> list[int]:
    """Return the first step and round numbers after it, about as many as wanted."""
    target = max(last - first, 1) / max(num_wanted, 1.0)
    magnitude = 10 ** np.floor(np.log10(max(target, 1)))
    every = int(next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= target))
    return [first, *range(-(-(first + 1) // every) * every, last + 1, every)]
