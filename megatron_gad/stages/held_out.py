"""The student, and the discriminator, on rows that neither learns from, while the run goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.data.batching import teacher_batch
from megatron_gad.engines.base import SamplingConfig, request_seed
from megatron_gad.evaluation.calibration import BINS, expected_accuracy, wins_by_difference
from megatron_gad.evaluation.length_only import LengthSums, length_only, length_sums
from megatron_gad.evaluation.ngram_f1 import ngram_f1, split_words
from megatron_gad.evaluation.probes import variants
from megatron_gad.evaluation.repetition import distinct_ngrams, repetition
from megatron_gad.runtime.run import Run
from megatron_gad.runtime.sampler import Request
from megatron_gad.stages.discriminator_step import judge_groups
from megatron_gad.stages.graded import instruction_metrics, judge_metrics
from megatron_gad.stages.rollouts import sample_now
from megatron_gad.types import Group, Metrics, Prompt, Rollout

# Samples of each prompt at the sampling temperature; the greedy one comes beside them.
NUM_SAMPLES = 4
NGRAM = 2
# Draws of an evaluation, besides those of the step before it.
GREEDY_DRAW, SAMPLED_DRAW = 10, 11
Sums = dict[str, tuple[float, float]]


def evaluate_held_out(run: Run) -> Metrics:
    """Measure the student as it is. All ranks call it, in a stage that has an engine.

    Returns ``evaluation/*`` and, if there is a discriminator, ``calibration/*`` and ``probe/*``;
    equal on all ranks. The discriminator does not learn.
    """
    if run.data.ahead is not None:
        with run.turn("rollout"):
            run.data.ahead.result()  # the engine is at work for the next step
    prompts = _own_prompts(run)
    with run.turn("evaluate"):
        loss = run.student.evaluate(teacher_batch(prompts), supervised_loss).metrics["loss"]
    greedy, sampled, instructed = _sample(run, prompts)
    found = run.parallel.mean_over_data(
        {f"greedy_{name}": each for name, each in _text_measures(greedy).items()}
        | _text_measures(sampled)
    )
    texts = [rollout.text for group in sampled for rollout in group.rollouts]
    every = [text for share in run.parallel.gather_over_data(texts) for text in share]
    found |= {"loss": loss, "distinct_bigrams": distinct_ngrams(every, 2) or 0.0}
    metrics = {f"evaluation/{name}": value for name, value in found.items()}
    metrics |= instruction_metrics(run, instructed) | judge_metrics(run, greedy)
    if run.has_discriminator:
        metrics |= _discriminator_metrics(run, sampled)
    return metrics


def _own_prompts(run: Run) -> list[Prompt]:
    """Return this data rank's share of the rows that are evaluated."""
    count = run.config.evaluation.num_prompts
    own = run.data.eval_prompts[:count][run.parallel.data_rank :: run.parallel.data_size]
    return list(own)


def _sample(run: Run, prompts: Sequence[Prompt]) -> tuple[list[Group], list[Group], list[Group]]:
    """Return the greedy response to every prompt, some at the sampling temperature, and the
    greedy response to this data rank's share of the instructions."""
    step = run.progress.iteration
    sampled = SamplingConfig.of_step(run.config, step, NUM_SAMPLES, SAMPLED_DRAW)
    greedy = replace(
        sampled,
        num_samples=1,
        temperature=0.0,
        seed=request_seed(run.config.seed, step, GREEDY_DRAW),
        name=f"evaluation_{step:07d}_greedy",
    )
    sampled = replace(sampled, name=f"evaluation_{step:07d}_sampled")
    requests = [Request(prompts, sampled), Request(prompts, greedy)]
    if run.data.instructions:
        own = run.data.instruction_prompts[run.parallel.data_rank :: run.parallel.data_size]
        named = replace(greedy, name=f"evaluation_{step:07d}_instructions")
        requests.append(Request(own, named))
    (of_prompts, likeliest, *further), _ = sample_now(run, requests)
    return likeliest, of_prompts, further[0] if further else []


def _text_measures(groups: Sequence[Group]) -> Sums:
    """Return (sum, count) of what is measured of responses beside the teacher's."""
    pairs = [(each, group.prompt) for group in groups for each in group.rollouts]
    scores = [
        score
        for rollout, prompt in pairs
        if (score := ngram_f1(split_words(rollout.text), split_words(prompt.teacher_text), NGRAM))
        is not None
    ]
    count = float(len(pairs))
    return {
        "ngram_f1": (sum(scores), float(len(scores))),
        "length_ratio": (
            float(sum(len(rollout.ids) for rollout, _ in pairs)),
            float(sum(len(prompt.teacher_ids) for _, prompt in pairs)),
        ),
        "truncated_share": (float(sum(r.finish_reason == "length" for r, _ in pairs)), count),
        "repetition": (sum(repetition(rollout.text) for rollout, _ in pairs), count),
    }


def _discriminator_metrics(run: Run, sampled: Sequence[Group]) -> Metrics:
    """Return how well the discriminator tells held-out pairs apart, and what sways its score."""
    judged = judge_groups(run, sampled, learns=False)
    margins_PG = judged.teacher_scores_P[:, None] - judged.scores_PG
    expected = (float(expected_accuracy(margins_PG).sum()), float(margins_PG.numel()))
    spreads = judged.scores_PG.std(dim=1)
    spread = run.parallel.mean_over_data({"_": (float(spreads.sum()), float(len(spreads)))})["_"]
    metrics = {
        "evaluation/discriminator_accuracy": judged.step.output.metrics["accuracy"],
        "evaluation/discriminator_margin": judged.step.output.metrics["margin"],
        "evaluation/group_std": spread,
        **run.parallel.mean_over_data({"evaluation/discriminator_expected_accuracy": expected}),
        **_calibration(run, margins_PG),
        **_length_metrics(run, sampled, margins_PG),
    }
    if spread == 0:  # all samples of every prompt are alike: the probes have no unit
        return metrics
    return metrics | _probe_metrics(run, [group.prompt for group in sampled], spread)


def _calibration(run: Run, margins_PG: Tensor) -> Metrics:
    """Return ``calibration/*``, of the bins that have a pair."""
    found = run.parallel.mean_over_data(wins_by_difference(margins_PG))
    bins = [name for name in BINS if found[f"pairs_{name}"] > 0]
    kinds = ("pairs", "expected", "observed")
    return {
        f"calibration/{kind}_{name}": found[f"{kind}_{name}"] for name in bins for kind in kinds
    }


def _length_metrics(run: Run, sampled: Sequence[Group], margins_PG: Tensor) -> Metrics:
    """Return how well the lengths that a discriminator sees tell the pairs apart."""
    own = [LengthSums(), LengthSums()]
    for group, margins in zip(sampled, margins_PG, strict=True):
        lengths = torch.tensor([len(rollout.text_ids) for rollout in group.rollouts])
        half = group.prompt.index % 2
        sums = length_sums(len(group.prompt.teacher_ids) - lengths, margins)
        own[half] = own[half].plus(sums)
    halves = [LengthSums(), LengthSums()]
    for share in run.parallel.gather_over_data(own):
        halves = [half.plus(part) for half, part in zip(halves, share, strict=True)]
    return {f"evaluation/{name}": value for name, value in length_only(halves).items()}


def _probe_metrics(run: Run, prompts: Sequence[Prompt], spread: float) -> Metrics:
    """Return by how much the score of the teacher's text changes, in units of the spread.

    spread: mean standard deviation of the scores within a group of samples; not 0.
    """
    every = run.data.eval_prompts[: run.config.evaluation.num_prompts]
    after = {
        prompt.index: other for prompt, other in zip(every, [*every[1:], *every[:1]], strict=True)
    }
    texts = [
        variants(prompt.teacher_text, after[prompt.index].teacher_text, prompt.index)
        for prompt in prompts
    ]
    read = run.sampler.with_text(
        [_as_group(run, *pair) for pair in zip(prompts, texts, strict=True)]
    )
    names = [*texts[0], "no_end_token"]
    judged = judge_groups(run, [_with_no_end_token(group) for group in read], learns=False)
    changes_PG = judged.scores_PG - judged.teacher_scores_P[:, None]
    sums: Sums = {
        f"probe/{name}": (float(changes.sum()), float(len(changes)))
        for name, changes in zip(names, changes_PG.T, strict=True)
    }
    return {name: value / spread for name, value in run.parallel.mean_over_data(sums).items()}


def _as_group(run: Run, prompt: Prompt, texts: Mapping[str, str]) -> Group:
    """Return texts as if they had been sampled for a prompt, cut where the teacher's was."""
    read = run.codec.encode_responses(list(texts.values()), [prompt.teacher_truncated] * len(texts))
    return Group(
        prompt,
        tuple(
            Rollout(ids, (0.0,) * len(ids), "length" if is_cut else "stop", weights_version=-1)
            for ids, is_cut in read
        ),
    )


def _with_no_end_token(group: Group) -> Group:
    """Add the first response as the discriminator reads it, but for its end token if it has one."""
    first = group.rollouts[0]
    if first.finish_reason == "stop":
        first = replace(first, text_ids=first.text_ids[:-1], scorer_ids=first.scorer_ids[:-1])
    return Group(group.prompt, (*group.rollouts, first))
