"""What the stages share in which the student answers and the discriminator scores."""

from abc import ABC
from typing import TypeVar

from megatron_gad.config.stages import SamplingSection
from megatron_gad.runtime.run import Progress
from megatron_gad.stages.stage import Learning, Stage

S = TypeVar("S", bound=SamplingSection)


class SamplingStage(Stage[S], ABC):
    """A stage in which the discriminator learns alone first, if its section says so."""

    def student_learning(self, num_steps: int) -> Learning:
        """The section's updates in every step after the discriminator's first steps alone."""
        lr = self.settings.student_rate(self.config.student.lr)
        turns = max(0, num_steps - self.settings.discriminator_only_steps)
        return Learning(lr, turns * self.settings.updates_per_step)

    def student_learns(self, progress: Progress) -> bool:
        """Return whether the student takes part in the step that is next."""
        is_alone = progress.step_in_stage < self.settings.discriminator_only_steps
        return self.settings.updates_per_step > 0 and not is_alone
