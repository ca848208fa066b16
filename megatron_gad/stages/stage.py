"""What a stage is: the questions that a run asks of it, and how stages become known by name."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from megatron_gad.config.run import RunConfig
from megatron_gad.runtime.run import Run
from megatron_gad.types import Metrics


@dataclass(frozen=True)
class StepResult:
    """metrics: "group/name" -> number, equal on all ranks. samples: this rank's, to look at."""

    metrics: Metrics
    samples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Learning:
    """How a model learns in a stage.

    lr: its peak rate. num_steps: optimizer steps, in which warm-up and decay are counted.
    """

    lr: float
    num_steps: int


class Stage(ABC):
    """One stage of a run. A new stage is a subclass in a file of its own in this folder.

    An object lives as long as the run is in the stage, and holds what only this stage knows.
    """

    name: ClassVar[str]
    uses_discriminator: ClassVar[bool] = True
    uses_engine: ClassVar[bool] = True

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    @property
    @abstractmethod
    def settings(self) -> Any:
        """The section of the configuration, with at least ``epochs`` and ``steps``."""

    @property
    @abstractmethod
    def prompts_per_step(self) -> int:
        """Prompts of one step over all data ranks."""

    @abstractmethod
    def student_learning(self, num_steps: int) -> Learning:
        """Return how the student learns in a stage of this many steps."""

    def discriminator_learning(self, num_steps: int) -> Learning:
        """Return how the discriminator learns in a stage of this many steps."""
        raise NotImplementedError(f"stage {self.name} has no discriminator")

    @abstractmethod
    def step(self, run: Run) -> StepResult:
        """Take one step. All ranks call it."""

    @property
    def resets_optimizer(self) -> bool:
        """Whether the optimizers' moments of the stage before are forgotten."""
        return False

    def num_steps(self, num_rows: int) -> int:
        """Return the steps on a data set of so many rows, if no criterion ends the stage before."""
        if self.settings.steps is not None:
            return self.settings.steps
        return max(1, math.ceil(self.settings.epochs * num_rows / self.prompts_per_step))

    def check_rows(self, num_rows: int) -> Iterator[str]:
        """Yield why a step cannot be taken on a data set of so many usable rows."""
        if self.uses_engine and self.prompts_per_step > num_rows:
            yield (
                f"{self.name}.prompts_per_step = {self.prompts_per_step}, but data.path has "
                f"{num_rows} usable rows: the same prompt twice in a step gives the same responses "
                "twice; use fewer prompts with a larger group_size, or more data"
            )

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
