"""The whole configuration of a run: the sections, composed."""

from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache
from typing import Annotated, Literal

from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.data import DataConfig
from megatron_gad.config.evaluation import EvaluationConfig
from megatron_gad.config.flags import FILE_ONLY, FLAT
from megatron_gad.config.further_stages import BestOfNConfig, PreferenceConfig, WhiteBoxConfig
from megatron_gad.config.gad import GadConfig
from megatron_gad.config.health import HealthConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.config.models import DiscriminatorConfig, OptimizerConfig, StudentConfig
from megatron_gad.config.output import CheckpointConfig, LogConfig
from megatron_gad.config.rewards import RewardConfig
from megatron_gad.config.rollout import RolloutConfig, SGLangConfig
from megatron_gad.config.run_control import ScheduleConfig, WatchdogConfig
from megatron_gad.config.stage_section import StageSection, stage_kinds
from megatron_gad.config.stages import AdversarialConfig, SeqkdConfig, WarmupConfig

StageName = Literal["seqkd", "preference", "white_box", "warmup", "best_of_n", "adversarial"]


@dataclass(frozen=True)
class RunConfig:
    """Everything a user may choose about a run.

    Attributes:
        stages: stages of the run, in their order.
        seed: seed of the data order, of sampling and of new weights.
        rewards: rewards beside the discriminator's score; one table [[rewards]] each.
    """

    stages: tuple[StageName, ...] = ("warmup", "adversarial")
    seed: int = 1234
    rewards: Annotated[tuple[RewardConfig, ...], FILE_ONLY] = ()
    parallel: Annotated[ParallelConfig, FLAT] = field(default_factory=ParallelConfig)
    compute: Annotated[ComputeConfig, FLAT] = field(default_factory=ComputeConfig)
    optimizer: Annotated[OptimizerConfig, FLAT] = field(default_factory=OptimizerConfig)
    checkpoint: Annotated[CheckpointConfig, FLAT] = field(default_factory=CheckpointConfig)
    log: Annotated[LogConfig, FLAT] = field(default_factory=LogConfig)
    data: DataConfig = field(default_factory=DataConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    seqkd: SeqkdConfig = field(default_factory=SeqkdConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    white_box: WhiteBoxConfig = field(default_factory=WhiteBoxConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    best_of_n: BestOfNConfig = field(default_factory=BestOfNConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    gad: GadConfig = field(default_factory=GadConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    sglang: SGLangConfig = field(default_factory=SGLangConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    @property
    def stage_sections(self) -> tuple[StageSection, ...]:
        """The sections of the run's stages, in their order."""
        return tuple(getattr(self, name) for name in self.stages)

    @property
    def uses_discriminator(self) -> bool:
        """Whether any stage has one."""
        return any(section.uses_discriminator for section in self.stage_sections)

    @property
    def uses_engine(self) -> bool:
        """Whether any stage samples."""
        return any(section.uses_engine for section in self.stage_sections)

    def check_rows(self, num_rows: int) -> None:
        """Raise ValueError if a stage's step takes more than the usable rows of the data."""
        problems = [text for each in self.stage_sections for text in each.row_problems(num_rows)]
        if problems:
            raise ValueError("\n".join(problems))

    def discriminator_layout(self, has_experts: bool) -> ParallelConfig:
        """Return the discriminator's layout: the student's except for the sizes of its own.

        has_experts: whether the discriminator's model has experts.
        """
        return self.discriminator.beside(self.parallel, has_experts)


def find_section(stage: str) -> type[StageSection] | None:
    """Return the section of a stage, if one of this name is known."""
    return {kind.name: kind for kind in stage_kinds()}.get(stage)


def config_kind() -> type[RunConfig]:
    """Return ``RunConfig``, with the sections of stages that are known beside those of its fields.

    A stage of another package becomes known as its section is imported.
    """
    own = {field.name for field in fields(RunConfig)}
    further = tuple(kind for kind in stage_kinds() if kind.name not in own)
    return _with_sections(further) if further else RunConfig


@cache
def _with_sections(kinds: tuple[type[StageSection], ...]) -> type[RunConfig]:
    names = tuple(kind.name for kind in stage_kinds())
    sections = [(kind.name, kind, field(default_factory=kind)) for kind in kinds]
    stages = ("stages", tuple[Literal[names], ...], field(default=RunConfig.stages))
    made = make_dataclass("RunConfig", [stages, *sections], bases=(RunConfig,), frozen=True)
    made.__doc__ = RunConfig.__doc__
    return made
