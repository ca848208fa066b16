"""The best student so far, by a metric of its evaluations."""

import json
import logging
import math
from pathlib import Path
from typing import Any

from megatron_gad.config.evaluation import LESS_IS_BETTER
from megatron_gad.files import replace_text
from megatron_gad.runtime.export import export_model
from megatron_gad.runtime.metrics import BEST, BEST_FOLDER, RESULTS_FILE
from megatron_gad.runtime.run import Run
from megatron_gad.runtime.run_folder import ask_first_rank
from megatron_gad.types import Metrics

RATIO = "evaluation/length_ratio"

logger = logging.getLogger(__name__)


def keep_best(run: Run, metrics: Metrics) -> None:
    """Write the student if its evaluation is the best so far, with the rule and its numbers.

    metrics: of an evaluation, the same on all ranks. All ranks call it.
    """
    key, limit = run.config.evaluation.select, run.config.evaluation.max_length_ratio
    if not key or key not in metrics:  # a judge that failed gives no number
        return
    results = ask_first_rank(run.parallel, lambda: _read(run.folder / RESULTS_FILE))
    before = results.get(BEST, {}).get(key)
    value, ratio = metrics[key], metrics[RATIO]
    less_is_better = key in LESS_IS_BETTER
    is_better = before is None or (value < before if less_is_better else value > before)
    if not (math.isfinite(value) and is_better and ratio <= limit):
        return
    # First: a crash between the two leaves a better student than the numbers say, not a worse one.
    export_model(run, "student", run.folder / BEST_FOLDER)
    if not run.parallel.is_writer:
        return
    chosen = {"step": run.progress.iteration, "stage": run.stage_name}
    rule = f"{'lowest' if less_is_better else 'highest'} {key} with {RATIO} at most {limit:g}"
    numbers = {name: x for name, x in metrics.items() if math.isfinite(x)}
    text = json.dumps({**results, BEST: {**chosen, "rule": rule, **numbers}}, indent=2)
    replace_text(run.folder / RESULTS_FILE, text + "\n")
    logger.info("%s holds the student of step %d: %s", BEST_FOLDER, run.progress.iteration, rule)


def _read(file: Path) -> dict[str, Any]:
    """Return the results so far. Raises ValueError if the file holds something else."""
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON ({error}); move it away") from error
    if not isinstance(found, dict) or not isinstance(found.get(BEST, {}), dict):
        raise ValueError(f"{file} holds no object of results; move it away")
    return found
