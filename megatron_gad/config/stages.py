"""What may be set of each stage. Defaults are the paper's."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_gad.config.data import DataConfig
from megatron_gad.config.gad import GadConfig
from megatron_gad.config.stage_section import OwnRateSection, StageSection, StageWork

# The Bradley-Terry loss of a discriminator that cannot tell the two sides apart.
CHANCE_LOSS = math.log(2.0)


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
        discriminator_lr: learning rate of this stage; default: discriminator.lr.
    """

    prompts_per_step: int = 256
    group_size: int = 8
    discriminator_lr: float | None = None

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


@dataclass(frozen=True)
class WarmupConfig(SamplingSection):
    """Stage ``warmup``: cross-entropy for the student, pairs for the discriminator.

    Attributes:
        discriminator_only_steps: steps at the start of the stage in which the discriminator learns
            alone.
        train_student: whether the student learns in this stage; if not, only the discriminator
            does.
        stop_below: running loss of the discriminator, over 20 steps, below which the stage ends. If
            all steps are taken and it is nearer to chance, 0.693, than to this, the run stops. 0:
            the stage ends after its steps.
    """

    name = "warmup"
    order = 30
    positive = ("group_size", "student_lr", "discriminator_lr")
    not_negative = ("discriminator_only_steps", "stop_below")
    fixed = ("prompts_per_step", "group_size", "train_student", "discriminator_only_steps")

    discriminator_only_steps: int = 10
    train_student: bool = True
    stop_below: float = 0.0

    def student_learns(self, step: int) -> bool:
        """Return whether the student learns in a step of the stage."""
        return self.train_student and step >= self.discriminator_only_steps

    def work(self, gad: GadConfig, split_groups: bool) -> StageWork:
        """The student reads the teacher's responses, the discriminator all."""
        return StageWork(
            kind=self.name,
            num_prompts=self.prompts_per_step,
            group_size=self.group_size,
            num_samples=self.num_rollouts,
            student_trained=self.prompts_per_step * self.train_student,
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
        """The bound has to lie where it means something, and the student has to learn."""
        steps, alone = self.steps or math.inf, self.discriminator_only_steps
        if self.train_student and steps <= alone:
            yield (
                f"warmup.steps = {steps} ends before the student learns: "
                f"warmup.discriminator_only_steps = {alone}; make steps larger"
            )
        if self.stop_below >= CHANCE_LOSS:
            yield (
                f"warmup.stop_below = {self.stop_below} is not below ln 2 = 0.693, the loss of a "
                "discriminator that guesses; take 0.4 to 0.6, or 0 to end by count"
            )


@dataclass(frozen=True)
class AdversarialConfig(SamplingSection):
    """Stage ``adversarial``: reinforcement learning on the scores of a discriminator that learns.

    Attributes:
        discriminator_samples: samples of a group that train the discriminator; 0: all. All are
            scored.
        discriminator_interval: steps from one in which the discriminator learns to the next; 0: it
            never learns. It scores in every step.
        extra_discriminator_steps: additional optimizer steps of the discriminator in each step, on
            fresh samples.
        extra_prompts: prompts of each additional step. They are other prompts than those of the
            step, with one sample each.
        overlap: sample for the next step, with the weights of this one, while this one trains.
        student_updates: optimizer steps of the student on one rollout batch, or, if that is cut,
            how often it goes through the parts.
        student_minibatches: parts of a rollout batch, of whole groups, with an optimizer step each.
        resample_rounds: how often a step samples as many further prompts for groups whose rewards
            do not differ, which teach nothing; 0: never.
    """

    name = "adversarial"
    order = 50
    positive = (*("student_updates", "student_minibatches", "student_lr", "discriminator_lr"),)
    not_negative = (
        *("discriminator_samples", "discriminator_interval"),
        *("extra_discriminator_steps", "resample_rounds"),
    )
    fixed = (
        *("prompts_per_step", "group_size", "discriminator_samples"),
        *("student_updates", "student_minibatches"),
        "resample_rounds",
    )
    student_loss = "policy"
    uses_gad = True

    epochs: float = 2.0
    discriminator_samples: int = 0
    discriminator_interval: int = 1
    extra_discriminator_steps: int = 0
    extra_prompts: int = 64
    overlap: bool = False
    student_updates: int = 1
    student_minibatches: int = 1
    resample_rounds: int = 0

    @property
    def updates_per_step(self) -> int:
        """One for each part, as often as ``student_updates`` says."""
        return self.student_updates * self.student_minibatches

    @property
    def num_parts(self) -> int:
        """As ``student_minibatches`` says."""
        return self.student_minibatches

    def discriminator_learns(self, step: int) -> bool:
        """Return whether the discriminator learns from the groups of a step of the stage."""
        return self.discriminator_interval > 0 and step % self.discriminator_interval == 0

    def row_problems(self, num_rows: int) -> Iterator[str]:
        """Extra steps take prompts of their own."""
        yield from super().row_problems(num_rows)
        count, steps = self.extra_prompts, self.extra_discriminator_steps
        if count * steps > num_rows:
            yield (
                f"adversarial.extra_prompts = {count} in each of "
                f"adversarial.extra_discriminator_steps = {steps} take {count * steps} prompts a "
                f"step, but data.path has {num_rows} usable rows: the discriminator would learn "
                "the same pairs again; make one of them smaller, or use more data"
            )
        most = self.prompts_per_step * (1 + self.resample_rounds)
        if self.resample_rounds and most > num_rows:
            yield (
                f"adversarial.resample_rounds = {self.resample_rounds} may take {most} prompts a "
                f"step, but data.path has {num_rows} usable rows; make it smaller, or use more data"
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
        learns = 1 / self.discriminator_interval if self.discriminator_interval else 0.0
        past = gad.negatives_share * self.num_judged if gad.negatives_pool else 0
        again = self.num_judged + past if split_groups else 0
        extra = self.extra_discriminator_steps * self.extra_prompts
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
        if self.overlap and self.resample_rounds:
            yield (
                f"adversarial.resample_rounds = {self.resample_rounds} samples with the student as "
                "it is, but with adversarial.overlap = True the engine is at work for the next "
                "step; leave one of them out"
            )
        if not self.discriminator_interval and self.extra_discriminator_steps > 0:
            yield (
                "adversarial.discriminator_interval = 0, but adversarial."
                f"extra_discriminator_steps = {self.extra_discriminator_steps}; a frozen "
                "discriminator never learns: set one of them back"
            )
