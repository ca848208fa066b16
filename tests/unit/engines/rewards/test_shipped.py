"""The reward functions that are shipped, on texts whose rewards are worked out by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from megatron_gad.engines.rewards import shipped


def _row(response: str = "", length: int = 10, **further: Any) -> dict[str, Any]:
    return {"response": response, "length": length, "teacher_length": 10, **further}


def test_length_costs_the_logarithm_of_what_is_beyond_the_tolerance():
    rows = [_row(length=n) for n in (10, 20, 5, 12)]
    expected = [0.0, -math.log(2), -math.log(2), -math.log(1.2)]
    assert shipped.length(rows) == pytest.approx(expected)
    expected = [0.0, -math.log(2 / 1.25), -math.log(2 / 1.25), 0.0]
    assert shipped.length(rows, tolerance=0.25) == pytest.approx(expected)


def test_overlong_falls_over_the_margin_below_the_cap():
    rows = [_row(length=n) for n in (50, 80, 85, 100, 101)]
    assert shipped.overlong(rows, cap=100, margin=20) == [0.0, 0.0, -0.25, -1.0, -1.0]


def test_repetition_is_the_share_of_runs_that_came_before():
    rows = [_row("a b a b a b"), _row("a b c d"), _row("a"), _row("")]
    # Runs of two: ab ba ab ba ab, two of five new.
    assert shipped.repetition(rows, n=2) == pytest.approx([-3 / 5, 0.0, 0.0, 0.0])


def test_matches_takes_the_whole_response():
    rows = [_row(" <a>x\ny</a>\n"), _row("so: <a>x</a>"), _row("")]
    assert shipped.matches(rows, pattern="<a>.*</a>") == [1.0, 0.0, 0.0]


def test_json_schema_takes_what_parses_and_fits(tmp_path: Path):
    pytest.importorskip("jsonschema")
    schema = tmp_path / "schema.json"
    wanted = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    schema.write_text(json.dumps(wanted))
    rows = [_row('{"a": 1}'), _row('{"a": "1"}'), _row("{}"), _row("a: 1")]
    assert shipped.json_schema(rows, schema=str(schema)) == [1.0, 0.0, 0.0, 0.0]


def test_exact_match_compares_with_a_column():
    said = ["42", " 42\n", "It is 42.", "first 41, then 42", "none"]
    rows = [_row(text, columns={"answer": 42}) for text in said]
    assert shipped.exact_match(rows, column="answer") == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert shipped.exact_match(rows, column="answer", pattern=r"\d+") == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert shipped.exact_match(rows, column="answer", pattern=r"is (\d+)") == [0, 0, 1.0, 0, 0]
