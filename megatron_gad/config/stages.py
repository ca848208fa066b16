"""What may be set of each stage. Defaults are the paper's."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log

from megatron_gad.config.data import DataConfig
from megatron_gad.config.gad import GadConfig
from megatron_gad.config.stage_section import OwnRateSection, StageSection, StageWork

# The Bradley-Terry loss of a discriminator that cannot tell the two sides apart.
CHANCE_LOSS = log(2.0)


@dataclass(frozen=True)
class SeqkdConfig(StageSection):
    """Stage ``seqkd``: cross-entropy on the teacher's responses, the baseline of the method.

    Attributes:
        batch_size: responses per optimizer step, over all data ranks.
        lr: learning rate of this stage.
        patience: end the stage after this many epochs without a better held-out loss; 0: never.
        keep_best: hand over the weights with the best held-out loss instead of the last ones.
    """

    name = "seqkd"
    order = 10
    batch_key = "batch_size"
    positive = ("lr",)
    not_negative = ("patience",)
    fixed = ("batch_size",)
    uses_discriminator = False
    uses_engine = False

    epochs: float = 3.0
    batch_size: int = 256
    lr: float = 5e-6
    patience: int = 0
    keep_best: bool = False

    def work(self, gad: GadConfig, split_groups: bool) -> StageWork:
        """One row for each prompt."""
        return StageWork(
            kind=self.name,
            num_prompts=self.batch_size,
            student_trained=self.batch_size,
            steps=self.steps,
            epochs=self.epochs,
        )

    def student_rate(self, default: float) -> float:
        """The stage has a rate of its own."""
        return self.lr

    def early_end(self) -> str:
        """The held-out loss may end it."""
        if not self.patience:
            return ""
        return f"ends early after {self.patience} epochs without a better held-out loss"

    def problems(self, data: DataConfig) -> Iterator[str]:
        """Two options need held-out rows."""
        wishes = {"patience": self.patience > 0, "keep_best": self.keep_best}
        for key, is_wished in wishes.items():
            if is_wished and not data.eval_path:
                yield (
                    f"seqkd.{key} = {getattr(self, key)} compares held-out losses, but "
                    "data.eval_path is not set; set it, or leave the option out"
                )


@dataclass(frozen=True)
class SamplingSection(OwnRateSection):
    """A stage that samples groups of responses, which the discriminator scores.

    Attributes:
        prompts_per_step: prompts of a step over all data ranks.
        group_size: samples of each prompt.
        discriminator_only_steps: steps at the start of the stage in which the discriminator learns
            alone.
        discriminator_lr: learning rate of this stage; None takes discriminator.lr.
    """

    prompts_per_step: int = 256
    group_size: int = 8
    discriminator_only_steps: int = 0
    discriminator_lr: float | None = None

    @property
    def updates_per_step(self) -> int:
        """The student's optimizer steps in a step of the stage."""
        return 1

    @property
    def num_rollouts(self) -> int:
        """Responses of a step's groups."""
        return self.prompts_per_step * self.group_size

    @property
    def num_judged(self) -> int:
        """Rows of a step's groups that the discriminator reads: the teacher's too."""
        return self.num_rollouts + self.prompts_per_step

    def discriminator_rate(self, default: float) -> float:
        """Its own rate, if it has one."""
        return default if self.discriminator_lr is None else self.discriminator_lr

    def student_never_learns(self) -> Iterator[str]:
        """Yield a message if the stage ends before the student's first step."""
        if self.steps is not None and 0 < self.steps <= self.discriminator_only_steps:
            yield (
                f"{self.name}.steps = {self.steps} ends before the student learns: {self.name}."
                f"discriminator_only_steps = {self.discriminator_only_steps}; make steps larger"
            )


@dataclass(frozen=True)
class WarmupConfig(SamplingSection):
    """Stage ``warmup``: cross-entropy for the student, pairs for the discriminator.

    Attributes:
        train_student: whether the student learns in this stage; if not, only the discriminator
            does.
        stop_below: running loss of the discriminator below which the stage ends; 0: after its
            steps.
        refuse_above: running loss of the discriminator above which the run stops when the stage
            ends; 0: never.
    """

    name = "warmup"
    order = 30
    positive = ("group_size", "student_lr", "discriminator_lr")
    not_negative = ("discriminator_only_steps", "stop_below", "refuse_above")
    fixed = ("prompts_per_step", "group_size", "train_student", "discriminator_only_steps")

    discriminator_only_steps: int = 10
    train_student: bool = True
    stop_below: float = 0.0
    refuse_above: float = 0.0

    @property
    def updates_per_step(self) -> int:
        """None if the student does not learn."""
        return int(self.train_student)

    def work(self, gad: GadConfig, split_groups: bool) -> StageWork:
        """The student reads the teacher's responses, the discriminator all."""
        return StageWork(
            kind=self.name,
            num_prompts=self.prompts_per_step,
            group_size=self.group_size,
            num_samples=self.num_rollouts,
            student_trained=self.prompts_per_step * self.updates_per_step,
            # Split groups are scored first, by a pass of its own.
            discriminator_forwards=self.num_judged if split_groups else 0,
            discriminator_trained=self.num_judged,
            steps=self.steps,
            epochs=self.epochs,
        )

    def early_end(self) -> str:
        """A discriminator that tells the two sides apart may end it."""
        if not self.stop_below:
            return ""
        return f"ends early at a discriminator loss below {self.stop_below:g}"

    def problems(self, data: DataConfig) -> Iterator[str]:
        """Both bounds have to lie where they mean something."""
        if self.train_student:
            yield from self.student_never_learns()
        if self.stop_below >= CHANCE_LOSS:
            yield (
                f"warmup.stop_below = {self.stop_below} is not below ln 2 = 0.693, the loss of a "
                "discriminator that guesses; take 0.4 to 0.6, or 0 to end by count"
            )
        if 0 < self.refuse_above < self.stop_below:
            yield (
                f"warmup.refuse_above = {self.refuse_above} is below warmup.stop_below = "
                f"{self.stop_below}, so a stage that ends in time is refused; make it larger, or 0"
            )


@dataclass(frozen=True)
class AdversarialConfig(SamplingSection):
    """Stage ``adversarial``: reinforcement learning on the scores of a discriminator that learns.

    Attributes:
        discriminator_samples: samples of a group that train the discriminator; 0: all. All are
            scored.
        discriminator_interval: steps from one in which the discriminator learns to the next. It
            scores in every step.
        freeze_discriminator: let the discriminator score without ever learning.
        extra_discriminator_steps: additional optimizer steps of the discriminator in each step, on
            fresh samples.
        extra_prompts: prompts of each additional step. They are other prompts than those of the
            step, with one sample each.
        overlap: sample for the next step, with the weights of this one, while this one trains.
        student_updates: optimizer steps of the student on one rollout batch, or, if that is cut,
            how often it goes through the parts.
        student_minibatches: parts of a rollout batch, of whole groups, with an optimizer step each.
    """

    name = "adversarial"
    order = 50
    positive = (
        *("discriminator_interval", "student_updates", "student_minibatches"),
        *("student_lr", "discriminator_lr"),
    )
    not_negative = (
        "discriminator_samples",
        "discriminator_only_steps",
        "extra_discriminator_steps",
    )
    fixed = (
        *("prompts_per_step", "group_size", "discriminator_samples", "freeze_discriminator"),
        *("discriminator_only_steps", "student_updates", "student_minibatches"),
    )
    uses_gad = True

    epochs: float = 2.0
    discriminator_samples: int = 0
    discriminator_interval: int = 1
    freeze_discriminator: bool = False
    extra_discriminator_steps: int = 0
    extra_prompts: int = 64
    overlap: bool = False
    student_updates: int = 1
    student_minibatches: int = 1

    @property
    def updates_per_step(self) -> int:
        """One for each part, as often as ``student_updates`` says."""
        return self.student_updates * self.student_minibatches

    @property
    def num_parts(self) -> int:
        """As ``student_minibatches`` says."""
        return self.student_minibatches

    @property
    def num_extra_steps(self) -> int:
        """Further steps that the discriminator takes; a frozen one takes none."""
        return 0 if self.freeze_discriminator else self.extra_discriminator_steps

    def row_problems(self, num_rows: int) -> Iterator[str]:
        """Extra steps take prompts of their own."""
        yield from super().row_problems(num_rows)
        count, steps = self.extra_prompts, self.num_extra_steps
        if count * steps > num_rows:
            yield (
                f"adversarial.extra_prompts = {count} in each of "
                f"adversarial.extra_discriminator_steps = {steps} take {count * steps} prompts a "
                f"step, but data.path has {num_rows} usable rows: the discriminator would learn "
                "the same pairs again; make one of them smaller, or use more data"
            )

    @property
    def samples_ahead(self) -> bool:
        """As ``overlap`` says."""
        return self.overlap

    @property
    def shared_keys(self) -> tuple[str, ...]:
        """Each extra step is shared out as well."""
        keys = super().shared_keys
        return (*keys, "extra_prompts") if self.extra_discriminator_steps > 0 else keys

    def work(self, gad: GadConfig, split_groups: bool) -> StageWork:
        """The discriminator learns in some steps, and scores in the others."""
        learns = 0.0 if self.freeze_discriminator else 1 / self.discriminator_interval
        past = gad.negatives_share * self.num_judged if gad.negatives_pool else 0
        again = self.num_judged + past if split_groups else 0
        extra = self.num_extra_steps * self.extra_prompts
        # The reference's pass; a KL in the reward needs the student's own before its update too.
        num_forwards = (1 + (gad.kl_in == "reward")) if gad.kl_coef > 0 else 0
        num_forwards += self.student_minibatches > 1  # for the log-probabilities from before them
        return StageWork(
            kind=self.name,
            num_prompts=self.prompts_per_step,
            group_size=self.group_size,
            num_samples=self.num_rollouts + extra,
            student_forwards=self.num_rollouts * num_forwards,
            student_trained=self.num_rollouts * self.student_updates,
            discriminator_forwards=self.num_judged * (1 - learns) + again * learns,
            discriminator_trained=(self.num_judged + past) * learns + 2 * extra,
            steps=self.steps,
            epochs=self.epochs,
            has_reference=gad.kl_coef > 0,
            is_game=True,
            overlaps=self.samples_ahead,
        )

    def problems(self, data: DataConfig) -> Iterator[str]:
        """Advantages need groups, and a frozen discriminator never learns."""
        yield from self.student_never_learns()
        if self.group_size < 2:
            yield (
                f"adversarial.group_size = {self.group_size} gives zero advantages; "
                "use 2 or more, or stages = ['seqkd']"
            )
        if self.discriminator_samples > self.group_size:
            yield (
                f"adversarial.discriminator_samples = {self.discriminator_samples} is more than "
                f"the adversarial.group_size = {self.group_size} samples of a prompt; "
                "make it smaller, or 0 for all"
            )
        if self.freeze_discriminator and self.extra_discriminator_steps > 0:
            yield (
                "adversarial.freeze_discriminator = True, but adversarial."
                f"extra_discriminator_steps = {self.extra_discriminator_steps}; a frozen "
                "discriminator never learns: set one of them back"
            )
