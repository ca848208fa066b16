"""The arms of the comparison: what each trains, and where it branches off.

All arms of a task and a seed share one beginning: SeqKD, and the warm-up of the discriminator. What
an arm does not use of that, it may spend elsewhere, so that all have cost the same in the end. A
new arm is one entry of ``ARMS``.
"""

from dataclasses import dataclass, field
from typing import Literal

# What an arm goes on from: nothing, the student that SeqKD leaves, or that and a discriminator.
Start = Literal["nothing", "seqkd", "warmup"]
BASE = "seqkd"  # the arm that is the shared beginning
# The stages that are over where an arm begins.
OVER: dict[Start, tuple[str, ...]] = {
    "nothing": (),
    "seqkd": ("seqkd",),
    "warmup": ("seqkd", "warmup"),
}
GAME = ("seqkd", "warmup", "adversarial")


@dataclass(frozen=True)
class Arm:
    """One way of spending what all may spend.

    title: in the tables. stages: of the whole run, those of its start included.
    flags: beside the task's; the value of a switch is empty.
    sized: the stage whose steps are as many as the budget pays for.
    is_fresh: the student's weights alone are taken over, and the run begins at its first stage.
    least: an arm that this one has to match in seconds too.
    share: of what is left to spend, what it does spend.
    has_teacher_model: whether it may see the probabilities of a model of the teacher, which was
        trained beside it and costs it nothing.
    """

    title: str
    start: Start
    stages: tuple[str, ...]
    flags: dict[str, str] = field(default_factory=dict[str, str])
    is_fresh: bool = False
    least: str = ""
    share: float = 1.0
    has_teacher_model: bool = False

    @property
    def sized(self) -> str:
        """The last stage."""
        return self.stages[-1]


def game(title: str, **flags: str) -> Arm:
    """Return GAD with other settings; ``__`` in a name stands for the dot."""
    return Arm(title, "warmup", GAME, {key.replace("__", "."): flags[key] for key in flags})


MINIBATCHES = {"adversarial__student_minibatches": "4"}
ARMS = {
    "gad": game("GAD"),
    "seqkd_longer": Arm("SeqKD, longer", "seqkd", ("seqkd",), is_fresh=True, least="gad"),
    "preference": Arm("preference, one snapshot (SODA)", "seqkd", ("seqkd", "preference")),
    "preference_tenth": Arm(
        "preference, a tenth of that", "seqkd", ("seqkd", "preference"), share=0.1
    ),
    "preference_refreshed": Arm(
        "preference, refreshed (SPIN)",
        "seqkd",
        ("seqkd", "preference"),
        {"preference.refresh_epochs": "1"},
    ),
    "white_box": Arm(
        "white box, reverse KL",
        "seqkd",
        ("seqkd", "white_box"),
        has_teacher_model=True,
    ),
    "best_of_n": Arm("best of 4 by D", "warmup", ("seqkd", "warmup", "best_of_n")),
    "filter": Arm(
        "filter by D, SFT",
        "warmup",
        ("seqkd", "warmup", "best_of_n"),
        {"best_of_n.keep": "4", "best_of_n.min_margin": "0"},
    ),
    "frozen": game("frozen D", adversarial__discriminator_interval="0"),
    "negatives": game(
        "GAD, persistent negatives", gad__negatives_pool="1024", gad__negatives_share="0.5"
    ),
    "no_discriminator_warmup": Arm("no D warm-up", "seqkd", ("seqkd", "adversarial")),
    "no_student_warmup": Arm("no student warm-up", "nothing", ("warmup", "adversarial")),
    "cross_entropy": Arm(
        "cross-entropy D", "seqkd", GAME, {"gad.discriminator_loss": "cross_entropy"}
    ),
    "last_token": Arm(
        "D scores the last token", "seqkd", GAME, {"discriminator.score": "last_token"}
    ),
    "mean_score": Arm("D scores the mean", "seqkd", GAME, {"discriminator.score": "mean"}),
    "dr_grpo": game("Dr. GRPO", gad__advantage="dr_grpo", gad__aggregation="constant"),
    "length_correction": game("length correction", gad__length_correction=""),
    "minibatches": game("4 minibatches", **MINIBATCHES),
    "clip_higher": game("4 minibatches, clip-higher", gad__clip_range_high="0.28", **MINIBATCHES),
    "gspo": game(
        "4 minibatches, GSPO",
        gad__policy_loss="gspo",
        gad__aggregation="sequence_mean",
        gad__clip_range="3e-4",
        gad__clip_range_high="4e-4",
        **MINIBATCHES,
    ),
}
