"""The curves that the page knows, in groups, and how each is drawn."""

from dataclasses import dataclass

from megatron_gad.config.stage_section import StudentLoss
from megatron_gad.evaluation.calibration import BINS

CHANCE_LOSS = 0.6931  # ln 2: a discriminator that tosses a coin


@dataclass(frozen=True)
class Line:
    """One curve.

    color: a name of the page's palette (drawing.PALETTE).
    spread: key of a standard deviation, drawn as a band around the curve; "" for none.
    """

    key: str
    label: str
    color: str
    spread: str = ""


@dataclass(frozen=True)
class Chart:
    """One picture over the steps of a run.

    unit: of the vertical axis; "%" shows shares as per cent.
    guides: (value, label) of horizontal lines that help to read it.
    student_loss: show only stages with a loss of this kind; None: each stage that has numbers.
    is_log, is_stacked: logarithmic axis; areas on top of each other.
    """

    title: str
    lines: tuple[Line, ...]
    unit: str = ""
    guides: tuple[tuple[float, str], ...] = ()
    student_loss: StudentLoss | None = None
    is_log: bool = False
    is_stacked: bool = False


CHARTS: dict[str, tuple[Chart, ...]] = {
    "Learning": (
        Chart(
            "Student: cross-entropy on what it fits",
            (
                Line("student/loss", "training", "student"),
                Line("student/eval_loss", "held-out", "teacher"),
            ),
            unit="nats a token",
            student_loss="cross_entropy",
        ),
        Chart(
            "Student: loss of pairs",
            (Line("student/loss", "loss", "student"),),
            guides=((CHANCE_LOSS, "chance"),),
            student_loss="pairs",
        ),
        Chart(
            "Student: divergence from the teacher",
            (Line("student/loss", "divergence", "student"),),
            unit="nats a token",
            student_loss="divergence",
        ),
        Chart(
            "Student: pairs in which it moved towards the teacher",
            (Line("student/accuracy", "share of pairs", "student"),),
            unit="%",
            guides=((0.5, "chance"),),
        ),
        Chart(
            "Student: margin of the teacher's response",
            (Line("student/margin", "margin", "student"),),
        ),
        Chart(
            "Student: policy loss in the game",
            (Line("student/loss", "policy loss", "student"),),
            student_loss="policy",
        ),
        Chart(
            "Held-out loss in the game",
            (Line("student/eval_loss", "held-out", "teacher"),),
            unit="nats a token",
            student_loss="policy",
        ),
        Chart(
            "Discriminator: loss",
            (Line("discriminator/loss", "loss", "discriminator"),),
            guides=((CHANCE_LOSS, "chance"),),
        ),
    ),
    "The game": (
        Chart(
            "Reward, mean and spread",
            (Line("reward/mean", "mean ± std", "student", spread="reward/std"),),
            unit="score",
        ),
        Chart(
            "Reward of length",
            (Line("reward/length_slope", "slope over log length", "student"),),
            unit="score",
            guides=((0.0, "none"),),
        ),
        Chart(
            "Discriminator: accuracy",
            (
                Line("discriminator/accuracy", "teacher scored above student", "discriminator"),
                Line("discriminator/fresh_accuracy", "of the step's own pairs", "student"),
                Line("discriminator/past_accuracy", "of past ones", "teacher"),
            ),
            unit="%",
            guides=((0.5, "chance"), (0.95, "too strong")),
        ),
        Chart(
            "Scores of the two sides",
            (
                Line("discriminator/teacher_score", "teacher", "teacher"),
                Line("discriminator/student_score", "student", "student"),
                Line("discriminator/margin", "margin", "discriminator"),
            ),
            unit="score",
        ),
        Chart(
            "KL to the reference",
            (Line("student/kl", "KL", "student"),),
            unit="nats a token",
        ),
        Chart(
            "Entropy of the student",
            (Line("student/entropy", "entropy", "student"),),
            unit="nats a token",
        ),
        Chart(
            "Groups without a signal",
            (
                Line("advantage/zero_share", "zero advantage", "discriminator"),
                Line("advantage/replaced_share", "replaced", "student"),
            ),
            unit="%",
        ),
    ),
    "Responses": (
        Chart(
            "Response length",
            (
                Line("response/length_mean", "student", "student"),
                Line("teacher/length_mean", "teacher", "teacher"),
            ),
            unit="tokens",
        ),
        Chart(
            "Truncated and re-tokenised",
            (
                Line("response/truncated_share", "cut at the cap", "discriminator"),
                Line("response/retokenized_share", "read back as other tokens", "student"),
            ),
            unit="%",
        ),
        Chart(
            "Samples that are fitted",
            (Line("response/chosen_share", "chosen", "student"),),
            unit="%",
        ),
    ),
    "Held out": (
        Chart(
            "Held-out cross-entropy on the teacher's text",
            (Line("evaluation/loss", "loss", "student"),),
            unit="nats a token",
        ),
        Chart(
            "Overlap with the teacher in pairs of words",
            (
                Line("evaluation/ngram_f1", "sampled", "student"),
                Line("evaluation/greedy_ngram_f1", "greedy", "teacher"),
            ),
            unit="%",
        ),
        Chart(
            "Length beside the teacher's",
            (
                Line("evaluation/length_ratio", "sampled", "student"),
                Line("evaluation/greedy_length_ratio", "greedy", "teacher"),
            ),
            unit="ratio",
            guides=((1.0, "the teacher's"),),
        ),
        Chart(
            "Held-out responses that are cut, or repeat themselves",
            (
                Line("evaluation/truncated_share", "cut at the cap, sampled", "discriminator"),
                Line("evaluation/greedy_truncated_share", "cut at the cap, greedy", "third"),
                Line("evaluation/repetition", "repeated, sampled", "student"),
                Line("evaluation/greedy_repetition", "repeated, greedy", "teacher"),
            ),
            unit="%",
        ),
        Chart(
            "Different pairs of words among the samples",
            (Line("evaluation/distinct_bigrams", "distinct", "student"),),
            unit="%",
        ),
        Chart(
            "Checkable instructions that are followed, greedy",
            (
                Line("evaluation/instructions_strict", "strict", "student"),
                Line("evaluation/instructions_loose", "loose", "teacher"),
            ),
            unit="%",
        ),
        Chart(
            "Judge's preference over the teacher, greedy",
            (
                Line("evaluation/judge_win_rate", "wins, ties half", "student"),
                Line("evaluation/judge_order_disagreement", "orders disagree", "third"),
                Line("evaluation/judge_missing_share", "without a verdict", "discriminator"),
            ),
            unit="%",
            guides=((0.5, "even"),),
        ),
        Chart(
            "Discriminator on held-out pairs",
            (
                Line("evaluation/discriminator_accuracy", "accuracy", "discriminator"),
                Line("evaluation/discriminator_expected_accuracy", "as it expects", "third"),
                Line("evaluation/length_only_accuracy", "by length alone", "teacher"),
                Line("evaluation/length_only_agreement", "agrees with length", "fourth"),
            ),
            unit="%",
            guides=((0.5, "chance"),),
        ),
        Chart(
            "Held-out margin, and spread within a group",
            (
                Line("evaluation/discriminator_margin", "margin", "discriminator"),
                Line("evaluation/group_std", "group std", "student"),
            ),
            unit="score",
        ),
        Chart(
            "Probes: what form is worth to the discriminator",
            (
                Line("probe/same", "nothing changed", "teacher"),
                Line("probe/newline", "line break added", "student"),
                Line("probe/space", "space added", "third"),
                Line("probe/no_final_mark", "no final mark", "discriminator"),
                Line("probe/no_end_token", "no end token", "fourth"),
            ),
            unit="group std",
        ),
        Chart(
            "Probes: what content is worth to the discriminator",
            (
                Line("probe/half", "first half", "student"),
                Line("probe/doubled", "twice", "third"),
                Line("probe/shuffled", "shuffled", "discriminator"),
                Line("probe/other", "another prompt's", "teacher"),
            ),
            unit="group std",
        ),
    ),
    "Machinery": (
        Chart(
            "Gradient norms",
            (
                Line("student/grad_norm", "student", "student"),
                Line("discriminator/grad_norm", "discriminator", "discriminator"),
            ),
            is_log=True,
        ),
        Chart(
            "Learning rates",
            (
                Line("student/lr", "student", "student"),
                Line("discriminator/lr", "discriminator", "discriminator"),
            ),
            is_log=True,
        ),
        Chart(
            "Engine against trainer: log-probability gap",
            (
                Line("engine/logprob_gap_max", "largest", "discriminator"),
                Line("engine/logprob_gap_mean", "mean", "student"),
                Line("engine/off_policy_gap_max", "largest, older weights", "teacher"),
                Line("engine/off_policy_gap_mean", "mean, older weights", "third"),
            ),
            unit="nats",
            is_log=True,
        ),
        Chart(
            "Sampling speed of an engine",
            (Line("engine/tokens_per_s", "sampled", "student"),),
            unit="tokens/s",
        ),
        Chart(
            "Rows of an engine",
            (
                Line("engine/running_rows", "at work", "student"),
                Line("engine/waiting_rows", "waiting", "discriminator"),
            ),
            unit="rows",
        ),
        Chart(
            "Prompt tokens that an engine had in its cache",
            (Line("engine/cache_hit_share", "in the cache", "student"),),
            unit="%",
        ),
        Chart(
            "Importance weight against the engine",
            (Line("student/tis_weight_mean", "mean", "student"),),
            unit="ratio",
            guides=((1.0, "equal"),),
        ),
        Chart(
            "Importance weights at their cap",
            (Line("student/tis_capped_share", "share of tokens", "discriminator"),),
            unit="%",
        ),
        Chart(
            "Where a step's time goes",
            (
                Line("time/rollout_s", "rollout", "student"),
                Line("time/swap_s", "swap", "third"),
                Line("time/discriminator_s", "discriminator", "discriminator"),
                Line("time/student_s", "student", "teacher"),
                Line("time/moves_s", "moves", "fifth"),
                Line("time/other_s", "other", "fourth"),
            ),
            unit="seconds",
            is_stacked=True,
        ),
        Chart(
            "Padding: share of the tokens computed",
            (
                Line("student/padding_share", "student", "student"),
                Line("discriminator/padding_share", "discriminator", "discriminator"),
            ),
            unit="%",
        ),
        Chart(
            "Tokens left out, as prompts are shared",
            (
                Line("student/shared_prompt_share", "student", "student"),
                Line("discriminator/shared_prompt_share", "discriminator", "discriminator"),
            ),
            unit="%",
        ),
        Chart(
            "Steps skipped, as their numbers were not finite",
            (
                Line("student/skipped_steps", "student", "student"),
                Line("discriminator/skipped_steps", "discriminator", "discriminator"),
            ),
            unit="a step",
        ),
        Chart("Tokens trained on", (Line("tokens/trained", "tokens", "student"),), unit="a step"),
    ),
}
# Shown as one number, in a table or as part of a curve, so no curve of their own.
WITHOUT_CURVE = (
    *("data/epoch", "engine/weights_lag", "moves/bytes", "swap/bytes"),
    *("time/step_s", "time/evaluation_s"),
    *(f"calibration/{kind}_{name}" for name in BINS for kind in ("pairs", "expected", "observed")),
)


def known_keys() -> list[str]:
    """Return every key that some chart draws."""
    lines = (line for charts in CHARTS.values() for chart in charts for line in chart.lines)
    return [key for line in lines for key in (line.key, line.spread) if key]
