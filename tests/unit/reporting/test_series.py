"""The horizontal axis gives every stage room; thinning and smoothing keep means."""

import numpy as np
import pytest

from megatron_gad.reporting.run_record import StageSpan
from megatron_gad.reporting.series import MAX_POINTS, build_axis, build_segment, smoothed


def span(stage: str, first: int, values: list[float], **more: list[float]) -> StageSpan:
    records = [
        {
            "step": first + index,
            "reward/mean": value,
            **{key: numbers[index] for key, numbers in more.items()},
        }
        for index, value in enumerate(values)
    ]
    return StageSpan(stage, tuple(records))


def test_steps_spread_evenly_over_one_stage():
    axis = build_axis((span("seqkd", 11, [0.0] * 4),))
    assert axis.position(0, np.array([11.0, 12.0, 14.0])).tolist() == [0.125, 0.375, 0.875]


def test_a_short_stage_keeps_its_least_width():
    axis = build_axis((span("seqkd", 1, [0.0] * 990), span("adversarial", 991, [0.0] * 10)))
    # Each has 0.22; the other 0.56 goes by steps, 99 to 1.
    assert axis.edges == pytest.approx((0.0, 0.22 + 0.56 * 0.99, 1.0))


def test_ticks_are_round_steps_that_do_not_crowd():
    axis = build_axis((span("seqkd", 1, [0.0] * 3300), span("adversarial", 3301, [0.0] * 160)))
    steps = [step for _, step in axis.ticks()]
    assert steps == [1, 1000, 2000, 3000, 3400]
    positions = [position for position, _ in axis.ticks()]
    assert min(np.diff(positions)) >= 0.1


def test_a_short_curve_is_kept_point_by_point():
    axis = build_axis((span("adversarial", 5, [1.0, 4.0, 2.0]),))
    segment = build_segment(axis, 0, "reward/mean")
    assert segment is not None
    assert segment.steps.tolist() == [5, 6, 7]
    assert segment.values.tolist() == [1.0, 4.0, 2.0]


def test_a_long_curve_is_thinned_to_means():
    values = np.arange(3 * MAX_POINTS - 1, dtype=float)
    axis = build_axis((span("adversarial", 1, values.tolist()),))
    segment = build_segment(axis, 0, "reward/mean")
    assert segment is not None
    assert len(segment.values) == MAX_POINTS
    assert segment.values[:2].tolist() == [1.0, 4.0]
    assert segment.steps[:2].tolist() == [3, 6]
    # The last neighbourhood has two points only.
    assert segment.values[-1] == (values[-2] + values[-1]) / 2
    assert segment.steps[-1] == len(values)


def test_gaps_and_non_finite_numbers_are_left_out():
    axis = build_axis((span("adversarial", 1, [1.0, float("nan"), 3.0, float("inf")]),))
    segment = build_segment(axis, 0, "reward/mean")
    assert segment is not None
    assert segment.steps.tolist() == [1, 3]
    assert build_segment(axis, 0, "student/kl") is None


def test_a_band_needs_a_spread_at_every_point():
    whole = span("adversarial", 1, [1.0, 2.0], spread=[0.5, 0.7])
    broken = span("adversarial", 1, [1.0, 2.0], spread=[0.5, float("nan")])
    segments = [
        build_segment(build_axis((s,)), 0, "reward/mean", "spread") for s in (whole, broken)
    ]
    assert [segment.spreads.tolist() for segment in segments if segment] == [[0.5, 0.7], []]


def test_smoothing_is_a_running_mean():
    assert smoothed(np.array([3.0, 1.0])).tolist() == [3.0, 1.0]
    values = np.arange(48, dtype=float) ** 2
    smooth = smoothed(values)  # a window of 3
    assert smooth[10] == pytest.approx((81 + 100 + 121) / 3)
    assert smooth[0] == pytest.approx((0 + 1) / 2)
    assert np.allclose(smoothed(np.full(200, 1.5)), 1.5)
