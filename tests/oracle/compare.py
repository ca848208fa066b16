"""Takes a run and the oracle through the same steps, and says where they part."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from megatron_gad.training.parallel import Parallel
from tests.oracle.case import Case
from tests.oracle.further_stages import Oracle
from tests.oracle.models import Learner
from tests.oracle.product import Product, Step
from tests.oracle.reference import Outcome
from tests.oracle.tokens import other_tokens

RELATIVE = 1e-5
LOGPROB = 1e-4
# After AdamW, which makes a whole step of a gradient that is almost 0: mean over all weights, and
# over those of one tensor.
MEAN_WEIGHT, MEAN_OF_TENSOR = 1e-7, 3e-7


def compare(name: str, case: Case, assets: Path, save: Path, place: Parallel) -> None:
    """Raise AssertionError at the first step in which the run is not what the oracle says."""
    options = case.options(assets, save)
    run, oracle = Product(options, place, case.engine_error), Oracle(options)
    while run.stage is not None:
        if not run.is_inside_stage:
            run.begin_stage()
        if run.is_at_start:
            oracle.begin(run.stage)
        step = run.step()
        problems = [*_problems(step, oracle), *_parted_weights(run, oracle)]
        where = f"{name}: {step.stage} step {step.number}"
        assert not problems, "\n".join([where, *problems])
        if (step.stage, step.number + 1) in case.resumes_after:
            run = run.resumed()
    run.close()


def _problems(step: Step, oracle: Oracle) -> Iterator[str]:
    """Let the oracle take the step, and yield what differs."""
    if step.stage == "seqkd":
        outcome = oracle.seqkd()
    else:
        yield from _asked_otherwise(step, oracle)
        if step.stage == "warmup":
            outcome = oracle.warmup(step.number, step.groups)
        elif step.stage == "preference":
            outcome = oracle.preference(step.number, step.groups)
        elif step.stage == "white_box":
            outcome = oracle.white_box(step.groups)
        elif step.stage == "best_of_n":
            outcome = oracle.best_of_n(step.groups)
        else:
            yield from _drawn_otherwise(step, oracle)
            outcome = oracle.adversarial(
                *(step.number, step.groups, step.extra),
                *(step.past, step.resting, step.further),
            )
    for key, expected in outcome.numbers.items():
        found = step.metrics.get(key)
        if found is None or not abs(found - expected.value) <= RELATIVE * expected.scale + 1e-9:
            yield f"{key}: {found}, the oracle has {expected.value}"
    for who in ("student", "discriminator"):
        learned = f"{who}/grad_norm"
        if learned in step.metrics and learned not in outcome.numbers:
            yield f"{learned}: {step.metrics[learned]}, but the oracle lets the {who} rest"
    yield from _other_logprobs(step, outcome)
    yield from _other_samples(step, outcome, oracle)
    yield from other_tokens(step, oracle)


def _asked_otherwise(step: Step, oracle: Oracle) -> Iterator[str]:
    """Yield where the engine was asked for other rows or prompts."""
    wanted = {
        "temperature": oracle.temperature,
        "max_new_tokens": oracle.texts.cap,
        "stop_ids": oracle.texts.stops,
    }
    for asked in step.asked:
        found = {key: asked[key] for key in wanted}
        if found != wanted:
            yield f"sampling: {found}, the oracle has {wanted}"
        if asked["seed"] in oracle.seeds:
            yield f"sampling: the seed {asked['seed']} comes twice"
        oracle.seeds.add(asked["seed"])
    rows = sorted(group.row for group in step.groups)
    expected = oracle.next_rows(len(rows))
    if rows != expected:
        yield f"rows: {rows}, the oracle has {expected}"
    for more in step.further:
        found_rows = sorted(group.row for group in more)
        expected = oracle.next_rows(len(more))
        if found_rows != expected:
            yield f"further rows: {found_rows}, the oracle has {expected}"
    extra = [group for each in step.extra for group in each]
    taken = [*rows, *(group.row for group in extra)]
    if len(set(taken)) < len(taken):
        yield f"rows: one of {taken} comes twice in the step, with its extra steps"
    for group in (*step.groups, *extra):
        prompt = oracle.texts.prompt(group.row)
        if list(group.prompt_ids) != prompt:
            yield f"prompt of row {group.row}: {group.prompt_ids}, the oracle has {prompt}"


def _drawn_otherwise(step: Step, oracle: Oracle) -> Iterator[str]:
    """Yield where other past groups were drawn than those that are held, or too few."""
    size = oracle.options["gad.negatives-pool"]
    held = (
        [
            (ago, row)
            for ago in range(len(oracle.history), 0, -1)
            for row in sorted(oracle.history[-ago])
        ][-size:]
        if size
        else []
    )
    wanted = min(len(held), round(oracle.options["gad.negatives-share"] * len(step.groups)))
    if not set(step.past) <= set(held) or len(set(step.past)) != wanted:
        yield f"past groups: {step.past}, the oracle has {wanted} of {held}"
    rows = {group.row for group in step.groups}
    if len(step.resting) != wanted or not step.resting <= rows:
        yield f"rows at rest: {step.resting}, the oracle has {wanted} of {rows}"


def _other_logprobs(step: Step, outcome: Outcome) -> Iterator[str]:
    """Yield where a response was sampled with other log-probabilities."""
    responses = [response for group in step.groups for response in group.responses]
    for response, expected in zip(responses, outcome.drawn, strict=True):
        if (torch.tensor(response.drawn_logprobs) - expected).abs().max() > LOGPROB:
            yield f"logprobs: {response.drawn_logprobs}, the oracle has {expected.tolist()}"


def _other_samples(step: Step, outcome: Outcome, oracle: Oracle) -> Iterator[str]:
    """Yield where what the run shows of its responses is not what it was trained on."""
    for p, group in enumerate(outcome.groups or step.groups):
        asked = oracle.texts.rows[group.row]["content"][0]["content"]
        shown = step.samples.get(f"user: {asked}")
        if shown is None:
            yield f"samples: none of {asked!r}"
            continue
        if shown["teacher"] != oracle.texts.rows[group.row]["teacher_response"]:
            yield f"samples: {shown['teacher']!r} is not the teacher's response to {asked!r}"
        for g, (sample, response) in enumerate(
            zip(shown["rollouts"], group.responses, strict=True)
        ):
            text = oracle.texts.text(response)
            if sample["text"] != text:
                yield f"text: {sample['text']!r}, the oracle has {text!r}"
            if sample["length"] != len(response.ids):
                yield f"length of {text!r}: {sample['length']}, sampled {len(response.ids)}"
            reason = "length" if response.is_cut else "stop"
            if sample["finish_reason"] != reason:
                yield f"finish reason of {text!r}: {sample['finish_reason']}, sampled {reason}"
            for key, table in (("score", outcome.scores), ("advantage", outcome.advantages)):
                if table is None:
                    continue
                bound = 2e-5 * float(table.abs().max())
                if abs(sample[key] - float(table[p, g])) > bound:
                    yield f"{key} of {text!r}: {sample[key]}, the oracle has {float(table[p, g])}"


def _parted_weights(run: Product, oracle: Oracle) -> Iterator[str]:
    """Yield which weights differ after the step."""
    yield from _parted("student", run, oracle.student)
    if oracle.discriminator is not None:
        yield from _parted("discriminator", run, oracle.discriminator)


def _parted(who: str, run: Product, learner: Learner) -> Iterator[str]:
    found = run.weights(who)
    expected = {name: value.detach() for name, value in learner.named.items()}
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    gaps: dict[str, Tensor] = {name: (found[name] - expected[name]).abs() for name in expected}
    mean = float(torch.cat([gap.flatten() for gap in gaps.values()]).mean())
    if not mean <= MEAN_WEIGHT:
        yield f"{who}'s weights: off by {mean:.3g} on average"
    for name, gap in gaps.items():
        if not gap.mean() <= MEAN_OF_TENSOR:
            at = int(gap.argmax())
            values = float(found[name].flatten()[at]), float(expected[name].flatten()[at])
            yield f"{who}'s {name}: {values[0]}, the oracle has {values[1]}"
