"""The rules that say whether the game between student and discriminator is healthy.

The bounds are rules of thumb, not theorems; docs/metrics.md explains each.
"""

from collections.abc import Callable

from megatron_gad.config.rollout import BF16_GAP_ALARM, FP32_GAP_BOUND
from megatron_gad.config.run import stage_kinds  # which knows the stages of the package
from megatron_gad.reporting.health_numbers import HealthNumbers
from megatron_gad.reporting.health_rule import Rule

Measure = Callable[[HealthNumbers], float | None]
Stages = Callable[[], tuple[str, ...]]


def taught() -> tuple[str, ...]:
    """Return the stages in which a discriminator learns."""
    kinds = [kind for kind in stage_kinds() if not kind.ranks_by_discriminator]
    return tuple(kind.name for kind in kinds if kind.uses_discriminator and kind.uses_engine)


def games() -> tuple[str, ...]:
    """Return those of them in which the student learns from its scores."""
    names = {kind.name for kind in stage_kinds() if kind.student_loss == "policy"}
    return tuple(name for name in taught() if name in names)


def recent(key: str, stages: Stages) -> Measure:
    """Measure the mean of a key over the last steps."""
    return lambda numbers: numbers.recent(key, stages())


def newest(key: str, stages: Stages) -> Measure:
    """Measure the last number of a key: of an evaluation, which is over many rows already."""
    return lambda numbers: numbers.newest(key, stages())


def growth(key: str) -> Measure:
    """Measure the end of the game as a multiple of its beginning."""
    return lambda numbers: numbers.growth(key, games())


def loss_that_the_game_began_with(numbers: HealthNumbers) -> float | None:
    """Measure the discriminator's loss at the end of its warm-up, once there is a game."""
    before = tuple(name for name in taught() if name not in games())
    return numbers.recent("discriminator/loss", before) if numbers.num_steps(games()) else None


def length_ratio(numbers: HealthNumbers) -> float | None:
    """Measure the student's response length as a multiple of the teacher's on the same prompts."""
    student = numbers.recent("response/length_mean", taught())
    teacher = numbers.recent("teacher/length_mean", taught())
    return student / teacher if student is not None and teacher else None


def frozen_steps(numbers: HealthNumbers) -> float | None:
    """Count steps of the game against a discriminator that does not learn; None if it does."""
    tables = [numbers.config.get(name, {}) for name in games()]
    if all(table.get("discriminator_interval", 1) for table in tables):
        return None
    return numbers.num_steps(games())


def engine_gap(numbers: HealthNumbers) -> float | None:
    """Measure the engine's log-probability gap in units of what its precision explains."""
    gap = numbers.largest("engine/logprob_gap_max")
    in_bf16 = numbers.config.get("compute", {}).get("bf16", False)
    return None if gap is None else gap / (BF16_GAP_ALARM if in_bf16 else FP32_GAP_BOUND)


def num_non_finite(numbers: HealthNumbers) -> float | None:
    """Count values that are nan or infinite."""
    return numbers.num_non_finite if numbers.num_values else None


def held_out_loss_of_accuracy(numbers: HealthNumbers) -> float | None:
    """Measure by how much the discriminator is better on its own rows than on held-out ones."""
    learned = numbers.recent("discriminator/accuracy", taught())
    held_out = numbers.newest("evaluation/discriminator_accuracy", taught())
    return None if learned is None or held_out is None else learned - held_out


def largest_form_probe(numbers: HealthNumbers) -> float | None:
    """Measure the largest size of the changes of form that should not matter."""
    names = ("newline", "space", "no_final_mark")
    found = [numbers.newest(f"probe/{name}", taught()) for name in names]
    return max((abs(value) for value in found if value is not None), default=None)


RULES = (
    Rule(
        "non_finite",
        "Numbers that are nan or infinite",
        num_non_finite,
        "",
        "none",
        high=(0, 0),
        too_high="A nan in a loss or gradient norm ends learning: lower the learning rate of the "
        "model that shows it first, and look at the samples of that step.",
    ),
    Rule(
        "weak_discriminator",
        "Discriminator too weak: its accuracy in the game",
        recent("discriminator/accuracy", games),
        "%",
        "above 52 %; a perfect student has 50 %",
        low=(0.52, 0.5),
        too_low="It cannot tell the sides apart, so its scores are noise: a longer warm-up "
        "(warmup.stop_below), more distinct prompts in it, or extra_discriminator_steps. If the "
        "samples are as good as the teacher's, the game has simply ended.",
    ),
    Rule(
        "strong_discriminator",
        "Discriminator too strong: its accuracy in the game",
        recent("discriminator/accuracy", games),
        "%",
        "below 90 %",
        high=(0.9, 0.95),
        too_high="It has the game won, and its scores hardly depend on quality. Look at the "
        "samples for a tell (white space, end token, truncation); then a lower "
        "adversarial.discriminator_lr, discriminator_interval = 2, or a longer seqkd stage.",
    ),
    Rule(
        "discriminator_margin",
        "Discriminator margin, end of the game",
        recent("discriminator/margin", games),
        "",
        "0 to 5",
        low=(0.0, -1.0),
        high=(5.0, 10.0),
        too_low="It scores the student above the teacher: it has forgotten or never learned. "
        "Extend the warm-up and keep its optimizer state (reset_optimizer = false).",
        too_high="Scores run apart. Lower adversarial.discriminator_lr or raise "
        "discriminator_interval; look for a tell in the samples.",
    ),
    Rule(
        "warmup_loss",
        "Discriminator loss at the end of its warm-up",
        loss_that_the_game_began_with,
        "",
        "below 0.60; chance is 0.693",
        high=(0.60, 0.66),
        too_high="The game began against a discriminator that knew little. The loss has a long "
        "plateau before it falls: gate on it with warmup.stop_below, and give "
        "more distinct prompts rather than more samples of each.",
    ),
    Rule(
        "discriminator_loss_growth",
        "Discriminator loss, end against beginning of the game",
        growth("discriminator/loss"),
        "x",
        "below 1.15 x, or a student that has become as good as the teacher",
        high=(1.15, 4.0),
        too_high="Either the student has become hard to tell from the teacher, or the "
        "discriminator forgets: a held-out check decides. Against forgetting: "
        "extra_discriminator_steps with fresh prompts, or a lower adversarial.student_lr.",
    ),
    Rule(
        "zero_advantages",
        "Groups whose advantages are all zero",
        recent("advantage/zero_share", games),
        "%",
        "below 30 %",
        high=(0.3, 0.6),
        too_high="These groups teach nothing. Raise rollout.temperature or the group size, or "
        "take harder prompts.",
    ),
    Rule(
        "kl",
        "KL to the reference, end of the game",
        recent("student/kl", games),
        "nats a token",
        "below 0.5",
        high=(0.5, 2.0),
        too_high="The student has moved far from where the stage began. Raise gad.kl_coef or "
        "lower adversarial.student_lr, unless the samples are plainly better.",
    ),
    Rule(
        "entropy",
        "Entropy, end against beginning of the game",
        growth("student/entropy"),
        "x",
        "0.4 x to 2 x",
        low=(0.4, 0.15),
        high=(2.0, 4.0),
        too_low="Responses have become nearly the same each time. Raise gad.kl_coef, lower "
        "adversarial.student_lr, or stop at an earlier checkpoint.",
        too_high="Text is falling apart. Lower adversarial.student_lr and raise gad.kl_coef.",
    ),
    Rule(
        "length_ratio",
        "Response length against the teacher's",
        length_ratio,
        "x",
        "0.67 x to 1.5 x",
        low=(0.67, 0.5),
        high=(1.5, 2.0),
        too_low="Responses have become short: look for a discriminator that rewards brevity in "
        "the samples, and at discriminator.score, which is not length-free as a sum.",
        too_high="Length drift, the usual sign of a hacked discriminator. Compare scores by "
        "length in the samples, let the discriminator learn more often, report length-controlled "
        "results.",
    ),
    Rule(
        "truncated",
        "Responses cut at the length cap",
        recent("response/truncated_share", taught),
        "%",
        "below 10 %",
        high=(0.1, 0.3),
        too_high="A cut text is easy to recognise. Raise data.max_response_tokens, or look for "
        "repetition in the samples.",
    ),
    Rule(
        "retokenized",
        "Rollouts that read back as other tokens",
        recent("response/retokenized_share", taught),
        "%",
        "below 5 %",
        high=(0.05, 0.25),
        too_high="The discriminator reads other tokens than the student sampled, so credit blurs. "
        "Usual with a weak student; if it grows, the student leaves normal text.",
    ),
    Rule(
        "engine_gap",
        "Engine against trainer, largest gap",
        engine_gap,
        "x the bound",
        f"below 1 x ({FP32_GAP_BOUND:g} nats in fp32, {BF16_GAP_ALARM:g} in bf16)",
        high=(1.0, 3.0),
        too_high="The engine samples from other weights or another temperature than are trained. "
        "rollout.logprob_gap_bound stops such a run; gad.tis_cap corrects a small mismatch.",
    ),
    Rule(
        "grad_norm_growth",
        "Student gradient norm, end against beginning of the game",
        growth("student/grad_norm"),
        "x",
        "below 3 x",
        high=(3.0, 10.0),
        too_high="Updates grow, which comes before collapse. Lower adversarial.student_lr.",
    ),
    Rule(
        "frozen_discriminator",
        "Steps against a frozen discriminator",
        frozen_steps,
        "",
        "up to 50",
        high=(50, 150),
        too_high="A discriminator that does not learn gets hacked: its reward rises on while the "
        "text becomes worthless. Take an early checkpoint, or discriminator_interval = 1.",
    ),
    Rule(
        "held_out_accuracy",
        "Discriminator accuracy, training above held-out rows",
        held_out_loss_of_accuracy,
        "%",
        "below 10 %",
        high=(0.1, 0.25),
        too_high="It knows its rows by heart, and rewards what is on them. Use more distinct "
        "prompts, or fewer epochs; a lower adversarial.discriminator_lr.",
    ),
    Rule(
        "form_probe",
        "What a line break, a space or a final mark is worth to the discriminator",
        largest_form_probe,
        "group std",
        "below 0.5",
        high=(0.5, 1.0),
        too_high="The score follows form, and the student will too. Look for white space or a mark "
        "that only one side has, and take it off the data.",
    ),
    Rule(
        "repetition",
        "Held-out responses that repeat themselves",
        newest("evaluation/repetition", taught),
        "%",
        "below 10 %",
        high=(0.1, 0.3),
        too_high="Responses loop. Lower adversarial.student_lr, raise gad.kl_coef, or stop at an "
        "earlier checkpoint.",
    ),
)
