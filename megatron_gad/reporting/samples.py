"""Samples of steps all over the run: the teacher's text beside what the student said."""

from dataclasses import dataclass, replace
from typing import Any

from megatron_gad.files import read_records
from megatron_gad.reporting.run_record import RunRecord, is_finite_number
from megatron_gad.reporting.tokens import Scale, ShownToken, read_tokens, scale_of, shown_tokens

# A page of long texts is some megabytes with these; all samples are in the run's files.
STEPS_PER_STAGE = 12
MAX_PROMPTS = 4
MAX_ROLLOUTS = 4
# Each takes some 40 bytes of the page.
MAX_COLOURED_TOKENS = 100_000


@dataclass(frozen=True)
class SampledRollout:
    """A rollout as shown; numbers are text, "" where the run did not record them.

    tokens: of its text, with their colours; none if the discriminator has no value for each.
    rewards: what each other reward gave.
    direction: "up" or "down" by the sign of the advantage, "" for none.
    """

    text: str
    tokens: tuple[ShownToken, ...]
    score: str
    rewards: str
    advantage: str
    direction: str
    length: str
    finish_reason: str


@dataclass(frozen=True)
class SampledPrompt:
    """A prompt with the teacher's text and some rollouts, best score first.

    teacher_score: the discriminator's of the teacher's text, "" if the run did not record it.
    teacher_tokens: of the teacher's text, as those of a rollout.
    scale: of the colours of all its tokens; None without any.
    num_hidden: rollouts between the best and the worst that are not shown.
    """

    prompt: str
    teacher: str
    teacher_score: str
    teacher_tokens: tuple[ShownToken, ...]
    scale: Scale | None
    rollouts: tuple[SampledRollout, ...]
    num_hidden: int

    @property
    def num_tokens(self) -> int:
        """Tokens that have a colour."""
        return len(self.teacher_tokens) + sum(len(rollout.tokens) for rollout in self.rollouts)

    def without_colours(self) -> "SampledPrompt":
        """Return the same as plain text."""
        rollouts = tuple(replace(rollout, tokens=()) for rollout in self.rollouts)
        return replace(self, teacher_tokens=(), scale=None, rollouts=rollouts)


@dataclass(frozen=True)
class SampledStep:
    """The samples of one step."""

    step: int
    stage: str
    prompts: tuple[SampledPrompt, ...]


def choose_samples(run: RunRecord) -> list[SampledStep]:
    """Read the first and last sampled step of every stage, and some evenly between them.

    Where prompts come back from step to step the same ones are shown, so that one sees the change.
    If there are too many tokens to colour, the first and last steps of the stages come first.
    """
    by_stage: dict[str, list[int]] = {}
    for step in run.sample_files:
        by_stage.setdefault(run.stage_of(step), []).append(step)
    steps = [step for found in by_stage.values() for step in _evenly_spread(found)]
    rows_of = {step: _read_rows(run, step) for step in sorted(steps)}
    counts: dict[str, int] = {}
    for rows in rows_of.values():
        for prompt in {str(row.get("prompt", "")) for row in rows}:
            counts[prompt] = counts.get(prompt, 0) + 1
    sampled = [_sampled_step(run, step, rows, counts) for step, rows in rows_of.items() if rows]
    ends = {step for found in by_stage.values() for step in (found[0], found[-1])}
    return _with_fewer_colours(sampled, ends)


def _with_fewer_colours(sampled: list[SampledStep], first: set[int]) -> list[SampledStep]:
    """Take the colours off beyond what a page may have; first: steps that keep theirs first."""
    left = MAX_COLOURED_TOKENS
    found: dict[int, SampledStep] = {}
    for each in sorted(sampled, key=lambda each: each.step not in first):
        prompts: list[SampledPrompt] = []
        for prompt in each.prompts:
            fits = prompt.num_tokens <= left
            left -= prompt.num_tokens if fits else 0
            prompts.append(prompt if fits else prompt.without_colours())
        found[each.step] = replace(each, prompts=tuple(prompts))
    return [found[each.step] for each in sampled]


def _evenly_spread(steps: list[int]) -> list[int]:
    gaps = min(STEPS_PER_STAGE, len(steps)) - 1
    places = {round(n * (len(steps) - 1) / gaps) for n in range(gaps + 1)} if gaps else {0}
    return [steps[place] for place in sorted(places)]


def _read_rows(run: RunRecord, step: int) -> list[dict[str, Any]]:
    rows, _ = read_records(run.sample_files[step])
    return rows


def _sampled_step(
    run: RunRecord, step: int, rows: list[dict[str, Any]], counts: dict[str, int]
) -> SampledStep:
    # sorted() is stable: among prompts seen equally often the order of the file stays.
    often_first = sorted(rows, key=lambda row: -counts[str(row.get("prompt", ""))])
    prompts = tuple(_sampled_prompt(row) for row in often_first[:MAX_PROMPTS])
    return SampledStep(step, run.stage_of(step) or str(rows[0].get("stage", "")), prompts)


def _sampled_prompt(row: dict[str, Any]) -> SampledPrompt:
    found = row.get("rollouts")
    rollouts = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    rollouts.sort(key=_score_or_lowest, reverse=True)
    half = MAX_ROLLOUTS // 2
    shown = rollouts
    if len(rollouts) > MAX_ROLLOUTS:
        shown = rollouts[:half] + rollouts[-half:]
    teacher, of_teacher = str(row.get("teacher", "")), read_tokens(row.get("teacher_tokens"))
    of_rollouts = [read_tokens(rollout.get("tokens")) for rollout in shown]
    scale = scale_of([of_teacher, *of_rollouts])
    return SampledPrompt(
        prompt=str(row.get("prompt", "")),
        teacher=teacher,
        teacher_score=_signed(row.get("teacher_score")),
        teacher_tokens=shown_tokens(teacher, of_teacher, scale),
        scale=scale,
        rollouts=tuple(
            _sampled_rollout(rollout, shown_tokens(str(rollout.get("text", "")), tokens, scale))
            for rollout, tokens in zip(shown, of_rollouts, strict=True)
        ),
        num_hidden=len(rollouts) - len(shown),
    )


def _score_or_lowest(rollout: dict[str, Any]) -> float:
    score = rollout.get("score")
    return score if is_finite_number(score) else float("-inf")


def _sampled_rollout(rollout: dict[str, Any], tokens: tuple[ShownToken, ...]) -> SampledRollout:
    advantage = rollout.get("advantage")
    direction = ""
    if is_finite_number(advantage) and advantage != 0:
        direction = "up" if advantage > 0 else "down"
    return SampledRollout(
        text=str(rollout.get("text", "")),
        tokens=tokens,
        score=_signed(rollout.get("score")),
        rewards=", ".join(f"{name} {_signed(value)}" for name, value in _rewards(rollout)),
        advantage=_signed(advantage),
        direction=direction,
        length=str(rollout.get("length", "")),
        finish_reason=str(rollout.get("finish_reason", "")),
    )


def _rewards(rollout: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return what each reward gave, but for the score, which is shown anyway."""
    found = rollout.get("rewards")
    items = found.items() if isinstance(found, dict) else ()
    return [(str(name), value) for name, value in items if name != "discriminator"]


def _signed(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:+.2f}" if is_finite_number(value) else str(value)
