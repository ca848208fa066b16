"""What a stage is: the questions that a run asks of it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar, cast

from torch import Tensor

from megatron_gad.config.run import RunConfig
from megatron_gad.config.stage_section import StageSection
from megatron_gad.runtime.run import Run
from megatron_gad.stages.skipped_steps import note_step
from megatron_gad.stages.step_result import StepResult
from megatron_gad.types import Metrics


@dataclass(frozen=True)
class Learning:
    """How a model learns in a stage.

    lr: its peak rate. num_steps: optimizer steps, in which warm-up and decay are counted.
    """

    lr: float
    num_steps: int


S = TypeVar("S", bound=StageSection)


class Stage(ABC, Generic[S]):
    """One stage of a run. A new stage is a subclass in a file of its own in this folder.

    An object lives as long as the run is in the stage, and holds what only this stage knows.
    kind: the class of its section, which has its name and answers what checks and planner ask.
    """

    kind: ClassVar[type[StageSection]]

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    @property
    def settings(self) -> S:
        """The stage's section."""
        return cast(S, getattr(self.config, self.kind.name))

    @property
    def name(self) -> str:
        """The stage's name, which its table has too."""
        return self.kind.name

    def student_learning(self, num_steps: int) -> Learning:
        """Return how the student learns in a stage of this many steps: in each of them."""
        return Learning(self.settings.student_rate(self.config.student.lr), num_steps)

    def discriminator_learning(self, num_steps: int) -> Learning:
        """Return how the discriminator, if any, learns in a stage of this many steps."""
        return Learning(self.settings.discriminator_rate(self.config.discriminator.lr), num_steps)

    def student_learns(self, run: Run) -> bool:
        """Return whether the student learns in the step that is next: unless health holds it."""
        return not run.restraint.skips_student

    @abstractmethod
    def step(self, run: Run) -> StepResult:
        """Compute one step."""

    def take_step(self, run: Run) -> StepResult:
        """Take one step, tell of models that skipped theirs, and count it. All ranks call it."""
        result = self.step(run)
        for each in result.models:
            note_step(run, each)
        run.progress.count_step(self.settings.num_prompts)
        return result

    def begin(self, run: Run) -> None:
        """Set up what is the stage's own, from the models as the stage before left them."""
        return

    def after_step(self, run: Run, metrics: Metrics) -> None:
        """Note what decides about the end of the stage. May add to the metrics."""
        return

    def reason_to_end(self) -> str:
        """Return why the stage is at its end before its last step, or an empty string."""
        return ""

    def refusal(self) -> str:
        """Return why the next stage must not begin, or an empty string."""
        return ""

    def finish(self, run: Run) -> None:
        """Settle what the stage hands over."""
        return

    def state(self, run: Run) -> dict[str, Any]:
        """Return what a checkpoint holds of the stage, as JSON values. All ranks call it."""
        return {}

    def snapshots(self) -> dict[str, list[Tensor]]:
        """Return earlier parameters of the student that a checkpoint holds, by name."""
        return {}

    def resume(
        self, run: Run, state: Mapping[str, Any], snapshots: Mapping[str, list[Tensor]]
    ) -> None:
        """Go on from what ``state`` and ``snapshots`` returned; called instead of ``begin``."""
        return
