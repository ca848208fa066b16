"""Stage ``preference``: the teacher's response preferred over one of the student's own."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from megatron_gad.algorithms.preference import preference_loss
from megatron_gad.config.further_stages import PreferenceConfig
from megatron_gad.config.run import RunConfig
from megatron_gad.data.batching import preference_batch
from megatron_gad.runtime.run import Run
from megatron_gad.stages.rollouts import sample_groups
from megatron_gad.stages.stage import Stage
from megatron_gad.stages.step_result import StepResult, sample_rows
from megatron_gad.stages.student_step import take_student_step
from megatron_gad.training.reference import Reference
from megatron_gad.types import Batch, Metrics


class PreferenceStage(Stage[PreferenceConfig]):
    """Samples from a snapshot of the student, and prefers the teacher's response.

    A snapshot answers a prompt when its turn comes, not all prompts beforehand: its answers are the
    same, and none waits in a checkpoint.
    """

    kind = PreferenceConfig

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self._snapshot: Reference | None = None

    def begin(self, run: Run) -> None:
        """Take the snapshot."""
        version = run.progress.weights_version
        self._snapshot = Reference(run.student, run.student.snapshot(), version)

    def step(self, run: Run) -> StepResult:
        """Sample from the snapshot, and raise the teacher's responses above the samples."""
        prompts = run.data.take(self.settings.prompts_per_step)
        groups, metrics = sample_groups(run, prompts, 1, self.snapshot)
        batch = preference_batch(groups)
        if self.settings.loss == "dpo":
            batch = self._with_reference(run, batch)
        loss = partial(preference_loss, kind=self.settings.loss, beta=self.settings.scale)
        rows = [group.prompt.index for group in groups for _ in range(2)]
        learned = take_student_step(run, batch, loss, rows)
        return StepResult.of(metrics, learned=learned, samples=sample_rows(groups))

    def after_step(self, run: Run, metrics: Metrics) -> None:
        """Take the snapshot anew at the end of every ``refresh_epochs`` epochs."""
        if not self.settings.refresh_epochs:
            return
        size = self.settings.refresh_epochs * len(run.data.prompts)
        done, each = run.progress.step_in_stage, self.settings.prompts_per_step
        if done * each // size > (done - 1) * each // size:
            self.begin(run)

    @property
    def snapshot(self) -> Reference:
        """The student that samples, which is the reference too."""
        assert self._snapshot is not None, "the stage has not begun"
        return self._snapshot

    def state(self, run: Run) -> dict[str, Any]:
        """Return which of the student's weights the snapshot is of."""
        return {"snapshot_version": self.snapshot.version}

    def snapshots(self) -> dict[str, list[Tensor]]:
        """Return the snapshot."""
        return {"reference": self.snapshot.snapshot}

    def resume(
        self, run: Run, state: Mapping[str, Any], snapshots: Mapping[str, list[Tensor]]
    ) -> None:
        """Go on with the snapshot."""
        version = state["snapshot_version"]
        self._snapshot = Reference(run.student, snapshots["reference"], version)

    def _with_reference(self, run: Run, batch: Batch) -> Batch:
        with run.turn("reference"):
            return batch.with_ref_logprobs(self.snapshot.logprobs(batch, temperature=1.0))
