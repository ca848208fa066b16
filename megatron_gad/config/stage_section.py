"""What every stage's section of the configuration has, and answers to checks and planner."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from megatron_gad.config.data import DataConfig
from megatron_gad.config.gad import GadConfig

StudentLoss = Literal["cross_entropy", "pairs", "policy", "divergence"]


@dataclass(frozen=True)
class StageWork:
    """One step of a stage. A row is a prompt with one response; counts are over all data ranks.

    num_prompts, group_size: of the batch; group_size 0 if nothing is sampled.
    num_samples: responses that the engine generates.
    student_forwards, student_trained, discriminator_forwards, discriminator_trained: rows that
        pass forward only, or forward and backward, through each model.
    teacher_forwards: rows that pass through a teacher of the run's own.
    steps: of the whole stage; None if only ``epochs`` are known.
    student_unit: rows that the student's loss reads together.
    has_reference: log-probabilities of an earlier student enter, whose weights the host keeps.
    is_game: the student learns from the scores of its own samples.
    overlaps: the engine samples for the next step while this one trains.
    """

    kind: str
    num_prompts: int
    group_size: int = 0
    num_samples: float = 0
    student_forwards: float = 0
    student_trained: float = 0
    discriminator_forwards: float = 0
    discriminator_trained: float = 0
    teacher_forwards: float = 0
    steps: int | None = None
    epochs: float = 1.0
    student_unit: int = 1
    has_reference: bool = False
    is_game: bool = False
    overlaps: bool = False

    @property
    def uses_discriminator(self) -> bool:
        """Whether any row passes through the discriminator."""
        return self.discriminator_forwards + self.discriminator_trained > 0

    def num_steps(self, num_data_prompts: int | None) -> float | None:
        """Return the steps of the stage, None if the size of the data set is needed."""
        if self.steps is not None:
            return self.steps
        if num_data_prompts is None:
            return None
        return max(1.0, self.epochs * num_data_prompts / self.num_prompts)


@dataclass(frozen=True)
class StageSection(ABC):
    """The section of one stage. A subclass with a ``name`` makes the table [name] known.

    name: of the stage and its table.
    order: stages run in ascending order of this; a new one comes after the others.
    batch_key: the field that counts the prompts of a step.
    positive, not_negative: fields that have to be above 0, or 0 or more.
    fixed: fields that must not change within the stage when a run resumes. Changes of the others
        are told.
    student_loss: kind of the student's loss, by which the page draws it.
    uses_gad: the stage follows the settings of [gad] that are not the discriminator's.
    ranks_by_discriminator: a discriminator that another stage has taught chooses what is learned.

    Attributes:
        epochs: length in passes over the data.
        steps: length in optimizer steps; wins over epochs.
    """

    name: ClassVar[str]
    order: ClassVar[int] = 100
    batch_key: ClassVar[str] = "prompts_per_step"
    positive: ClassVar[tuple[str, ...]] = ()
    not_negative: ClassVar[tuple[str, ...]] = ()
    fixed: ClassVar[tuple[str, ...]] = ()
    student_loss: ClassVar[StudentLoss] = "cross_entropy"
    uses_discriminator: ClassVar[bool] = True
    uses_engine: ClassVar[bool] = True
    uses_gad: ClassVar[bool] = False
    ranks_by_discriminator: ClassVar[bool] = False

    epochs: float = 1.0
    steps: int | None = None

    @abstractmethod
    def work(self, gad: GadConfig, split_groups: bool) -> StageWork:
        """Return what one typical step computes.

        Typical: steps in which only the discriminator learns are left out, as is an early end.

        split_groups: the discriminator scores groups before it trains on their rows.
        """

    @property
    def num_prompts(self) -> int:
        """Prompts of a step over all data ranks."""
        return getattr(self, self.batch_key)

    @property
    def num_parts(self) -> int:
        """Parts of a step's prompts that the student learns from one after the other."""
        return 1

    @property
    def samples_ahead(self) -> bool:
        """Whether the engine samples for the next step while this one trains."""
        return False

    @property
    def compares_scores(self) -> bool:
        """Whether it needs the discriminator's scores even if they are no part of the rewards."""
        return False

    @property
    def shared_keys(self) -> tuple[str, ...]:
        """The fields whose number all data ranks share evenly."""
        return (self.batch_key,)

    def num_steps(self, num_rows: int) -> int:
        """Return the steps on a data set of so many rows, if no criterion ends the stage before."""
        if self.steps is not None:
            return self.steps
        return max(1, math.ceil(self.epochs * num_rows / self.num_prompts))

    def student_rate(self, default: float) -> float:
        """Return the student's peak learning rate. default: that of [student]."""
        return default

    def discriminator_rate(self, default: float) -> float:
        """Return the discriminator's peak learning rate. default: that of [discriminator]."""
        return default

    def early_end(self) -> str:
        """Return what may end the stage before its last step, in words; empty if nothing does."""
        return ""

    def row_problems(self, num_rows: int) -> Iterator[str]:
        """Yield why a step cannot be taken on a data set of so many usable rows."""
        if self.num_prompts <= num_rows:
            return
        found = f"{self.name}.{self.batch_key} = {self.num_prompts}, but data.path has {num_rows}"
        if self.uses_engine:
            yield (
                f"{found} usable rows: the same prompt twice in a step gives the same responses "
                "twice; use fewer prompts with a larger group_size, or more data"
            )
        else:
            yield (
                f"{found} usable rows: a step would learn from some of them more than once; "
                f"make it at most {num_rows}, or use more data"
            )

    def problems(self, data: DataConfig) -> Iterator[str]:
        """Yield what is wrong with the section beyond the ranges of its fields."""
        yield from ()


@dataclass(frozen=True)
class OwnRateSection(StageSection):
    """A stage that may give the student a rate of its own.

    Attributes:
        student_lr: learning rate of this stage; default: student.lr.
    """

    student_lr: float | None = None

    def student_rate(self, default: float) -> float:
        """Its own rate, if it has one."""
        return default if self.student_lr is None else self.student_lr


def stage_kinds() -> tuple[type[StageSection], ...]:
    """Return the sections of all stages that are known, in the order in which stages may run."""
    kinds: list[type[StageSection]] = []
    bases: list[type[StageSection]] = [StageSection]
    while bases:
        base = bases.pop(0)
        kinds += [base] if "name" in vars(base) else []
        bases[:0] = base.__subclasses__()
    return tuple(sorted(kinds, key=lambda kind: kind.order))
