"""What may be set of the stages that the paper does not have: they learn from the same text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from megatron_gad.config.data import DataConfig
from megatron_gad.config.gad import GadConfig
from megatron_gad.config.stage_section import OwnRateSection, StageWork

SERVED = ("http:", "https:")  # how the address of a server begins
Divergence = Literal["reverse_kl", "forward_kl", "jensen_shannon"]


@dataclass(frozen=True)
class BestOfNConfig(OwnRateSection):
    """Stage ``best_of_n``: cross-entropy on the samples with the highest rewards.

    The reward is the discriminator's score, or the sum of [[rewards]]. The discriminator scores as
    the stages before have left it, and does not learn. With ``keep`` = ``group_size`` and a
    ``min_margin``, samples are filtered instead of ranked.

    Attributes:
        prompts_per_step: prompts of a step over all data ranks.
        group_size: samples of each prompt, from the student as it is.
        keep: samples of each prompt that are fitted, those with the highest rewards.
        min_margin: fit only samples whose score exceeds the teacher's by this; default: any.
    """

    name = "best_of_n"
    order = 40
    positive = ("group_size", "keep", "student_lr")
    fixed = ("prompts_per_step", "group_size", "keep", "min_margin")
    ranks_by_discriminator = True

    prompts_per_step: int = 256
    group_size: int = 8
    keep: int = 1
    min_margin: float | None = None

    @property
    def compares_scores(self) -> bool:
        """A margin is between the discriminator's scores, whatever the rewards are."""
        return self.min_margin is not None

    def work(self, gad: GadConfig, split_groups: bool) -> StageWork:
        """All samples are scored, and the best are trained on."""
        num_samples = self.prompts_per_step * self.group_size
        return StageWork(
            kind=self.name,
            num_prompts=self.prompts_per_step,
            group_size=self.group_size,
            num_samples=num_samples,
            student_trained=self.prompts_per_step * self.keep,
            discriminator_forwards=num_samples + self.prompts_per_step,
            steps=self.steps,
            epochs=self.epochs,
        )

    def problems(self, data: DataConfig) -> Iterator[str]:
        """There have to be samples to choose from."""
        chooses = self.keep < self.group_size or self.min_margin is not None
        if not chooses or self.keep > self.group_size:
            yield (
                f"best_of_n.keep = {self.keep} of best_of_n.group_size = {self.group_size} samples "
                "chooses nothing, and the student would learn to stay as it is; keep fewer, or "
                "keep all and give best_of_n.min_margin"
            )


@dataclass(frozen=True)
class PreferenceConfig(OwnRateSection):
    """Stage ``preference``: the teacher's response preferred over one of the student's own.

    The student's responses come from a snapshot of it: the one of the stage's start, as in SODA
    (arXiv 2604.03873), or one that is taken anew, as in SPIN (arXiv 2401.01335). The snapshot is
    the reference of DPO too.

    Attributes:
        prompts_per_step: prompts of a step over all data ranks, each with one pair.
        loss: dpo (arXiv 2305.18290), or simpo (arXiv 2405.14734), which has no reference.
        beta: scale of the margin; default: 0.1 for dpo, 2 for simpo.
        refresh_epochs: take the snapshot, which samples and is the reference, anew after this many
            epochs; 0: never.
    """

    name = "preference"
    order = 20
    positive = ("beta", "student_lr")
    not_negative = ("refresh_epochs",)
    fixed = ("prompts_per_step", "loss", "refresh_epochs")
    student_loss = "pairs"
    uses_discriminator = False

    prompts_per_step: int = 256
    loss: Literal["dpo", "simpo"] = "dpo"
    beta: float | None = None
    refresh_epochs: int = 0

    @property
    def scale(self) -> float:
        """The margin's scale, as set or the one that is usual for the loss."""
        if self.beta is not None:
            return self.beta
        return 0.1 if self.loss == "dpo" else 2.0

    def work(self, gad: GadConfig, split_groups: bool) -> StageWork:
        """Two rows for each prompt; DPO reads them with the reference as well."""
        return StageWork(
            kind=self.name,
            num_prompts=self.prompts_per_step,
            group_size=1,
            num_samples=self.prompts_per_step,
            student_forwards=2 * self.prompts_per_step * (self.loss == "dpo"),
            student_trained=2 * self.prompts_per_step,
            student_unit=2,
            has_reference=True,
            steps=self.steps,
            epochs=self.epochs,
        )


@dataclass(frozen=True)
class WhiteBoxConfig(OwnRateSection):
    """Stage ``white_box``: on-policy distillation from a teacher whose probabilities are known.

    The student samples as in the game, and learns the teacher's distribution at every token of its
    own responses. The teacher needs the student's tokenizer.

    Attributes:
        prompts_per_step: prompts of a step over all data ranks.
        group_size: samples of each prompt.
        teacher: Hugging Face folder, or the name of a model of the hub; or http://host:port of an
            SGLang server, which knows sampled_kl alone.
        loss: divergence of the student from the teacher: exact over the vocabulary, or, as
            sampled_kl, the reverse KL as estimated from the sampled tokens.
    """

    name = "white_box"
    order = 25
    positive = ("group_size", "student_lr")
    fixed = ("prompts_per_step", "group_size", "teacher", "loss")
    student_loss = "divergence"
    uses_discriminator = False

    prompts_per_step: int = 256
    group_size: int = 1
    teacher: str = ""
    loss: Literal["reverse_kl", "forward_kl", "jensen_shannon", "sampled_kl"] = "reverse_kl"

    @property
    def is_served(self) -> bool:
        """Whether the teacher is a server and no folder."""
        return self.teacher.startswith(SERVED)

    def work(self, gad: GadConfig, split_groups: bool) -> StageWork:
        """Every sample passes through the teacher and trains the student."""
        num_samples = self.prompts_per_step * self.group_size
        return StageWork(
            kind=self.name,
            num_prompts=self.prompts_per_step,
            group_size=self.group_size,
            num_samples=num_samples,
            student_trained=num_samples,
            teacher_forwards=0 if self.is_served else num_samples,
            steps=self.steps,
            epochs=self.epochs,
        )

    def problems(self, data: DataConfig) -> Iterator[str]:
        """There has to be a teacher."""
        if not self.teacher:
            yield (
                "white_box.teacher is not set; name the Hugging Face folder of a teacher with the "
                "student's tokenizer, or take a stage that learns from texts alone"
            )
        if self.is_served and self.loss != "sampled_kl":
            yield (
                f"white_box.loss = {self.loss!r} needs the teacher's whole distribution, but "
                f"white_box.teacher = {self.teacher!r} answers for single tokens; set white_box."
                "loss = 'sampled_kl', or name a folder"
            )
