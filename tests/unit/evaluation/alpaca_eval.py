"""AlpacaEval's published judgements and answers, if a folder of this machine holds them."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_gad.evaluation.length_control import Compared

FOLDER = "ALPACA_EVAL_FOLDER"  # with answers.jsonl, judgements.jsonl and published.json


def alpaca_eval_file(name: str) -> Path:
    """Return a file of the folder that the environment names, or skip the test."""
    path = Path(os.environ.get(FOLDER, ""), name)
    if FOLDER not in os.environ or not path.is_file():
        pytest.skip(f"{FOLDER} names no folder with AlpacaEval's {name}")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines."""
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def compared_models() -> dict[str, Compared]:
    """Return the judgements by model, in the order of the instructions."""
    rows = read_rows(alpaca_eval_file("judgements.jsonl"))
    rows.sort(key=lambda row: row["index"])
    models = dict.fromkeys(row["model"] for row in rows)
    return {model: _compared([r for r in rows if r["model"] == model]) for model in models}


def _compared(rows: list[dict[str, Any]]) -> Compared:
    given = [row["preference"] for row in rows]
    preferences = [np.nan if value is None else float(np.clip(value - 1, 0, 1)) for value in given]
    differences = [float(row["model_characters"] - row["reference_characters"]) for row in rows]
    return Compared(np.array(preferences), np.array(differences))
