"""What a step works with, and where the run stands."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

from megatron_gad.config.run import RunConfig
from megatron_gad.data.chat import ChatCodec
from megatron_gad.data.codecs import Codecs
from megatron_gad.engines.rewards.client import Rewards
from megatron_gad.runtime.metrics import MetricsWriter
from megatron_gad.runtime.parts import build_discriminator
from megatron_gad.runtime.run_data import RunData
from megatron_gad.runtime.run_folder import RunFolderLock
from megatron_gad.runtime.sampler import Sampler
from megatron_gad.runtime.turns import Turns
from megatron_gad.training.checkpoint import Unpublished
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.trainer import Trainer


@dataclass
class Progress:
    """Where a run stands. Plain values: this is what a checkpoint writes down.

    iteration: steps over all stages.
    weights_version: updates of the student, so that an engine's copy can be told to be old.
    """

    iteration: int = 0
    stage_index: int = 0
    step_in_stage: int = 0
    weights_version: int = 0
    consumed_samples: int = 0

    def count_step(self, num_samples: int) -> None:
        """Count a step that was taken on so many prompts."""
        self.iteration += 1
        self.step_in_stage += 1
        self.consumed_samples += num_samples


@dataclass(frozen=True)
class Restraint:
    """Which models do not learn for now, because rules of health say so; they still score."""

    pauses_discriminator: bool = False
    skips_student: bool = False


@dataclass(eq=False)
class Run:
    """Everything a step works with, whichever the stage; made by ``stages.begin.open_run``.

    lock: on the run directory. opened: what has to be closed at the end of the run.
    turn: gives models and engine their turns on the device.
    skips_in_a_row: steps that each model skipped since the last one that it took.
    last_update: the step in which a model last learned.
    restraint: what the rules of health hold back.
    unpublished: the checkpoint that is being written in the background, if one is.
    """

    config: RunConfig
    codecs: Codecs
    data: RunData
    lock: RunFolderLock
    writer: MetricsWriter
    sampler: Sampler
    rewards: Rewards
    student: Trainer
    turn: Turns
    opened: contextlib.ExitStack
    progress: Progress = field(default_factory=Progress)
    skips_in_a_row: dict[str, int] = field(
        default_factory=lambda: {"student": 0, "discriminator": 0}
    )
    last_update: int = 0
    restraint: Restraint = field(default_factory=Restraint)
    unpublished: Unpublished | None = None
    _discriminator: Trainer | None = None

    @property
    def parallel(self) -> Parallel:
        """The student's place among the ranks."""
        return self.student.parallel

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.writer.run_folder

    @property
    def codec(self) -> ChatCodec:
        """The student's tokenizer and chat template."""
        return self.codecs.student

    @property
    def stage_name(self) -> str:
        """The stage that the run is in."""
        return self.config.stages[self.progress.stage_index]

    @property
    def writes_samples(self) -> bool:
        """Whether the step that is next writes samples."""
        return self.config.log.writes_samples(self.progress.step_in_stage + 1)

    @property
    def has_discriminator(self) -> bool:
        """Whether a discriminator was built already."""
        return self._discriminator is not None

    @property
    def discriminator(self) -> Trainer:
        """The discriminator; built by the first stage that needs one."""
        assert self._discriminator is not None, "this stage has no discriminator"
        return self._discriminator

    def build_discriminator(self) -> None:
        """Make the discriminator; its weights are undefined until loaded."""
        self._discriminator = build_discriminator(self.config, self.student)
        self.turn.add("discriminator", self._discriminator)

    def close(self) -> None:
        """Stop the engine and finish all files, also if one of them fails."""
        self.opened.close()
