"""Write the numbers of a run: JSON lines, TensorBoard, log lines, samples; time its phases.

Every key, its unit and how to read it: docs/metrics.md.
"""

import importlib
import logging
import math
import re
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from megatron_gad.config.output import LogConfig
from megatron_gad.errors import only_warns
from megatron_gad.files import keep_until, open_to_append, replace_lines, sync, to_json

logger = logging.getLogger(__name__)

RESULTS_FILE = "results.json"
BEST = "best"  # in it, of the student that is kept in this folder
BEST_FOLDER = "best_hf"
METRICS_FILE = "metrics.jsonl"
SAMPLES_FOLDER = "samples"
TENSORBOARD_FOLDER = "tensorboard"
WANDB_ID_FILE = "wandb_id.txt"

# The numbers of the log line, in its order; metrics.jsonl has all of them.
LOG_LINE_KEYS = (
    "student/loss",
    "student/eval_loss",
    "student/lr",
    "student/grad_norm",
    "student/kl",
    "student/entropy",
    "discriminator/loss",
    "discriminator/accuracy",
    "discriminator/margin",
    "discriminator/grad_norm",
    "reward/mean",
    "reward/std",
    "advantage/zero_share",
    "response/length_mean",
    "teacher/length_mean",
    "engine/tokens_per_s",
    "engine/logprob_gap_max",
    "evaluation/instructions_strict",
    "evaluation/instructions_loose",
    "evaluation/judge_win_rate",
)
PROGRESS_KEYS = {
    "student/loss": "loss",
    "discriminator/accuracy": "D accuracy",
    "reward/mean": "reward",
}


class MetricsWriter:
    """Writes ``metrics.jsonl``, ``tensorboard/`` and ``samples/`` of one run folder.

    Steps count from 1 over all stages of the run. Only the rank with ``is_writer`` touches a file;
    on the others every method returns at once. Values arrive reduced over ranks.
    """

    def __init__(self, run_folder: Path | str, config: LogConfig, is_writer: bool) -> None:
        """Raise ValueError where ``wandb_project`` is set and wandb is not installed."""
        self.run_folder = Path(run_folder)
        self.config = config
        self.is_writer = is_writer
        self._file: TextIO | None = None
        self._tensorboard: SummaryWriter | None = None
        self._purge_step: int | None = None
        self._step_seconds: list[float] = []
        self._wandb = None
        if is_writer:
            self.run_folder.mkdir(parents=True, exist_ok=True)
            self._wandb = _start_wandb(config.wandb_project, self.run_folder)

    def truncate_after(self, step: int) -> None:
        """Drop what was written after ``step``; call it before the first step, 0 for a new run.

        A run that stopped after its last checkpoint repeats some steps. Their lines and samples go,
        and so does a line that was only half written, so that one consistent file remains.
        """
        if not self.is_writer:
            return
        self._close_files()
        self._purge_step = step + 1
        path = self.run_folder / METRICS_FILE
        if path.exists():
            keep_until(path, step)
        for samples in (self.run_folder / SAMPLES_FOLDER).glob("step_*.jsonl"):
            if samples_step(samples) > step:
                samples.unlink()

    def write(
        self,
        step: int,
        stage: str,
        metrics: Mapping[str, float | torch.Tensor],
        consumed_samples: int,
        total_steps: int | None = None,
    ) -> dict[str, Any] | None:
        """Record one step; return its record, on the rank that writes.

        metrics: "group/name" -> number or scalar tensor; nan and infinities are recorded as such.
        consumed_samples: prompts used since the run began.
        total_steps: last step where it is known; None where a criterion ends the stage.
        """
        if not self.is_writer:
            return None
        numbers = {key: _plain_number(value) for key, value in metrics.items()}
        record = {"step": step, "stage": stage, "time": time.time()}
        record |= {"consumed_samples": consumed_samples, **numbers}
        self._append(to_json(record))
        if self.config.tensorboard:
            self._write_tensorboard(step, numbers)
        if self._wandb is not None:
            self._wandb.log({"stage": stage, **numbers}, step=step)
        self._step_seconds.append(numbers.get("time/step_s", math.nan))
        if self.config.log_interval > 0 and step % self.config.log_interval == 0:
            milliseconds = 1000 * sum(self._step_seconds) / len(self._step_seconds)
            self._step_seconds.clear()
            counted = f"{step:8d}/{total_steps:8d}" if total_steps else f"{step:8d}"
            tqdm.write(_log_line(counted, record, milliseconds))
        return record

    def write_samples(self, step: int, stage: str, rows: list[dict[str, Any]]) -> None:
        """Write ``samples/step_<step>.jsonl``, one line a prompt.

        rows: {"prompt": str, "teacher": str, "rollouts": [{"text", "score", "advantage", "length",
            "finish_reason"}]}, and what docs/metrics.md tells besides; step and stage are added.
        """
        if not self.is_writer:
            return
        folder = self.run_folder / SAMPLES_FOLDER
        folder.mkdir(exist_ok=True)
        lines = [to_json({"step": step, "stage": stage, **row}) for row in rows]
        replace_lines(folder / f"step_{step:07d}.jsonl", lines)

    def sync(self) -> None:
        """Wait until the disk holds the lines written so far, as before a checkpoint after them."""
        if self._file is not None:
            sync(self.run_folder / METRICS_FILE)

    def close(self) -> None:
        """Finish all files; what fails is a warning, because the run is over."""
        with only_warns(logger, f"{METRICS_FILE} or {TENSORBOARD_FOLDER}/ may lack the last steps"):
            self._close_files()
        if self._wandb is not None:
            with only_warns(logger, "Weights & Biases may lack the last steps"):
                self._wandb.finish()
            self._wandb = None

    def _append(self, line: str) -> None:
        if self._file is None:
            self._file = open_to_append(self.run_folder / METRICS_FILE)
        self._file.write(line + "\n")
        self._file.flush()

    def _write_tensorboard(self, step: int, numbers: dict[str, float]) -> None:
        if self._tensorboard is None:
            folder = str(self.run_folder / TENSORBOARD_FOLDER)
            self._tensorboard = SummaryWriter(folder, purge_step=self._purge_step)
        for key, value in numbers.items():
            self._tensorboard.add_scalar(key, value, step)

    def _close_files(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None


def progress(total: int | None, desc: str, is_writer: bool) -> tqdm:
    """Return a progress bar on stderr; silent where that is no terminal and on other ranks."""
    disable = None if is_writer else True
    return tqdm(total=total, desc=desc, unit="step", dynamic_ncols=True, disable=disable)


def advance(bar: tqdm, metrics: Mapping[str, float | torch.Tensor]) -> None:
    """Move a bar by one step and show the main numbers of the step beside it."""
    shown = {name: metrics[key] for key, name in PROGRESS_KEYS.items() if key in metrics}
    bar.set_postfix({name: f"{float(value):.3f}" for name, value in shown.items()}, refresh=False)
    bar.update(1)


def samples_step(path: Path) -> int:
    """Return the step in the name of a file of samples, -1 for any other file."""
    match = re.fullmatch(r"step_(\d+)\.jsonl", path.name)
    return int(match.group(1)) if match else -1


def _start_wandb(project: str, run_folder: Path) -> Any:
    if not project:
        return None
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise ValueError(
            f"wandb_project = {project!r} needs the package wandb, which is not installed: "
            "pip install 'megatron-gad[wandb]', or leave wandb_project empty"
        ) from error
    # Without an id of its own a run that resumes would be another run there.
    file = run_folder / WANDB_ID_FILE
    if not file.exists():
        replace_lines(file, [uuid4().hex])
    return wandb.init(
        project=project,
        name=run_folder.resolve().name,
        dir=str(run_folder),
        id=file.read_text(encoding="utf-8").strip(),
        resume="allow",
    )


def _log_line(counted: str, record: dict[str, Any], milliseconds: float) -> str:
    fields = [
        f"iteration {counted}",
        f"stage: {record['stage']}",
        f"consumed samples: {record['consumed_samples']:12d}",
    ]
    if not math.isnan(milliseconds):
        fields.append(f"elapsed time per iteration (ms): {milliseconds:.1f}")
    fields += [f"{key}: {record[key]:.5g}" for key in LOG_LINE_KEYS if key in record]
    return f" [{datetime.now():%Y-%m-%d %H:%M:%S}] " + " | ".join(fields) + " |"


def _plain_number(value: Any) -> float:
    return value if isinstance(value, int) else float(value)
