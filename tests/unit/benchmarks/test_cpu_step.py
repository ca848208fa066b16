"""The benchmark counts medians, and refuses to compare what did not compute the same."""

import pytest

from benchmarks.cpu_step import Measured, table


def measured(their_losses: list[float]) -> Measured:
    found = Measured(parameters=2_000_000, tokens=100)
    ours = {"seconds": [1.0, 9.0, 2.0], "cpu_seconds": [0.5, 0.5, 9.0], "losses": [3.0, 2.0]}
    theirs = {"seconds": [4.0, 4.0, 1.0], "cpu_seconds": [1.0] * 3, "losses": their_losses}
    packed = {**ours, "seconds": [2.5]}
    found.add("one", {"trainer": ours, "packed": packed, "transformers": theirs})
    found.add("TP2", {"trainer": ours})
    found.add("DP2", {"trainer": {**ours, "seconds": [1.0]}})
    return found


def test_medians_and_ratios_are_those_of_the_steps() -> None:
    found = measured([3.0, 2.00001])
    found.check("3x64")
    one = {"trainer": 50.0, "packed": 40.0, "transformers": 25.0}
    assert found.tokens_per_second() == {**one, "TP2": 50.0, "DP2": 100.0}
    assert found.cpu_ratio() == 2.0
    row = table({"3x64": found}).splitlines()[-1]
    ours = "25 | 50 | 2.00 | 2.00 | 40 (0.80x)"
    assert row == f"| 3x64 | 2.00 M | 100 | {ours} | 50 (1.00x) | 100 (2.00x) |"


def test_other_losses_are_no_comparison() -> None:
    with pytest.raises(RuntimeError, match="losses of transformers"):
        measured([3.0, 2.1]).check("3x64")
