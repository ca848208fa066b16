"""Stage ``warmup``: cross-entropy for the student, pairs for the discriminator."""

import math
from collections.abc import Mapping
from statistics import mean
from typing import Any

from megatron_gad.config.run import RunConfig
from megatron_gad.config.stages import CHANCE_LOSS, WarmupConfig
from megatron_gad.runtime.run import Run
from megatron_gad.stages.discriminator_step import judge_groups
from megatron_gad.stages.rollouts import sample_groups
from megatron_gad.stages.stage import Learning, Stage
from megatron_gad.stages.step_result import StepResult, sample_rows
from megatron_gad.stages.student_step import learn_from_teacher
from megatron_gad.types import Metrics

# Steps over which the discriminator's running loss is taken: one step's is too noisy to end on.
RUNNING_STEPS = 20


class WarmupStage(Stage[WarmupConfig]):
    """Teaches the discriminator on fresh samples, and the student on the teacher's responses."""

    kind = WarmupConfig

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.recent_losses: list[float] = []

    def student_learning(self, num_steps: int) -> Learning:
        """An update in every step after the discriminator's first steps alone."""
        lr = super().student_learning(num_steps).lr
        return Learning(lr, sum(map(self.settings.student_learns, range(num_steps))))

    def student_learns(self, run: Run) -> bool:
        """Not in the discriminator's first steps, and not if the section says never."""
        is_on_turn = self.settings.student_learns(run.progress.step_in_stage)
        return is_on_turn and super().student_learns(run)

    def step(self, run: Run) -> StepResult:
        """Sample, let the discriminator learn, then fit the teacher's responses."""
        prompts = run.data.take(self.settings.prompts_per_step)
        groups, metrics = sample_groups(run, prompts, self.settings.group_size)
        learns, shows = not run.restraint.pauses_discriminator, run.writes_samples
        judged = judge_groups(run, groups, learns, shows=shows)
        learned = learn_from_teacher(run, prompts) if self.student_learns(run) else None
        samples = sample_rows(
            groups,
            judged.scores_PG,
            teacher_scores_P=judged.teacher_scores_P,
            tokens=judged.tokens,
        )
        return StepResult.of(metrics, judged=[judged.step], learned=learned, samples=samples)

    def after_step(self, run: Run, metrics: Metrics) -> None:
        """Note the discriminator's loss, unless its step was skipped."""
        if math.isfinite(metrics["discriminator/loss"]):
            self.recent_losses.append(metrics["discriminator/loss"])
        del self.recent_losses[:-RUNNING_STEPS]

    def reason_to_end(self) -> str:
        """End when the discriminator tells the two sides apart."""
        limit, recent = self.settings.stop_below, self.recent_losses
        if limit and len(recent) == RUNNING_STEPS and mean(recent) < limit:
            return f"the running discriminator loss is {mean(recent):.3f}, below {limit:g}"
        return ""

    def refusal(self) -> str:
        """Refuse a discriminator that cannot tell the two sides apart."""
        wanted, recent = self.settings.stop_below, self.recent_losses
        if not recent or not wanted or mean(recent) <= (wanted + CHANCE_LOSS) / 2:
            return ""
        return (
            f"stage warmup ended with a running discriminator loss of {mean(recent):.3f}, nearer "
            f"to chance (0.693) than to warmup.stop_below = {wanted:g}: the discriminator cannot "
            "tell the two apart and would reward noise. Train it longer (warmup.steps), faster "
            "(warmup.discriminator_lr) or on more prompts of fewer samples; the same command with "
            "a larger warmup.steps goes on from here"
        )

    def state(self, run: Run) -> dict[str, Any]:
        """Return the losses that the running loss is taken over."""
        return {"recent_losses": self.recent_losses}

    def resume(self, run: Run, state: Mapping[str, Any], snapshots: Mapping[str, Any]) -> None:
        """Go on with the running loss."""
        self.recent_losses = list(state["recent_losses"])
