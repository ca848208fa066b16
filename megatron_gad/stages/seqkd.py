"""Stage ``seqkd``: cross-entropy on the teacher's responses, the baseline of the method."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.config.run import RunConfig
from megatron_gad.config.stages import SeqkdConfig
from megatron_gad.data.batching import teacher_batch
from megatron_gad.runtime.run import Run
from megatron_gad.stages.stage import Stage
from megatron_gad.stages.step_result import StepResult
from megatron_gad.stages.student_step import learn_from_teacher
from megatron_gad.types import Metrics


class SeqkdStage(Stage[SeqkdConfig]):
    """Fits the teacher's responses; a held-out loss may end the stage and choose its weights."""

    kind = SeqkdConfig

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.best_loss: float | None = None
        self.best_weights: list[Tensor] | None = None
        self.num_evals_since_best = 0

    def step(self, run: Run) -> StepResult:
        """Fit the teacher's responses by cross-entropy."""
        prompts = run.data.take(self.settings.batch_size)
        return StepResult.of({}, learned=learn_from_teacher(run, prompts))

    def after_step(self, run: Run, metrics: Metrics) -> None:
        """Measure the held-out loss at the end of an epoch and of the stage."""
        done, num_rows = run.progress.step_in_stage, len(run.data.prompts)
        epochs_before, epochs = (n * self.settings.batch_size // num_rows for n in (done - 1, done))
        is_last = done >= self.settings.num_steps(num_rows)
        if run.data.eval_prompts and (is_last or epochs > epochs_before):
            metrics["student/eval_loss"] = self._evaluate(run)

    def reason_to_end(self) -> str:
        """End when the held-out loss has not fallen for ``patience`` epochs."""
        if not self.settings.patience or self.num_evals_since_best < self.settings.patience:
            return ""
        best = math.inf if self.best_loss is None else self.best_loss
        return (
            f"the held-out loss has not fallen below {best:.4f} "
            f"for {self.num_evals_since_best} epochs"
        )

    def finish(self, run: Run) -> None:
        """Hand over the weights with the best held-out loss, if ``keep_best`` asks for them."""
        if self.best_weights is not None:
            run.student.restore(self.best_weights)
            run.progress.weights_version += 1

    def state(self, run: Run) -> dict[str, Any]:
        """Return the best held-out loss and how long ago it was."""
        return {
            "best_eval_loss": self.best_loss,
            "num_evals_since_best": self.num_evals_since_best,
        }

    def snapshots(self) -> dict[str, list[Tensor]]:
        """Return the weights with the best held-out loss."""
        return {} if self.best_weights is None else {"best": self.best_weights}

    def resume(
        self, run: Run, state: Mapping[str, Any], snapshots: Mapping[str, list[Tensor]]
    ) -> None:
        """Go on counting from the best evaluation so far."""
        self.best_loss = state["best_eval_loss"]
        self.num_evals_since_best = state["num_evals_since_best"]
        self.best_weights = snapshots.get("best")

    def _evaluate(self, run: Run) -> float:
        """Return the held-out loss, and remember the best weights."""
        mine = run.data.eval_prompts[run.parallel.data_rank :: run.parallel.data_size]
        with run.turn("evaluate"):
            loss = run.student.evaluate(teacher_batch(mine), supervised_loss).metrics["loss"]
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            self.best_loss, self.num_evals_since_best = loss, 0
            self.best_weights = run.student.snapshot() if self.settings.keep_best else None
        else:
            self.num_evals_since_best += 1
        return loss
