"""Each probe shows what a discriminator has learned to go by, and is silent about the rest."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_gad.evaluation.probes import variants
from megatron_gad.runtime.run import Run
from megatron_gad.stages.begin import begin_stage, open_run
from megatron_gad.stages.discriminator_step import judge_groups
from megatron_gad.stages.held_out import evaluate_held_out
from megatron_gad.training.parallel import Parallel
from megatron_gad.types import Group, Prompt, Rollout
from tests.tiny_run import make_run

STEPS, GROUPS = 80, 4
DIRECTIONS = ("north", "south", "east", "west")
# What the discriminator has learned to tell from the teacher's text, and the probes that are not to
# see it. Its first half, say, also lacks the final mark, so that learning of that sways "half" too.
SILENT = {
    "newline": ("no_final_mark", "shuffled", "other"),
    "space": ("no_final_mark", "shuffled"),
    "no_final_mark": ("other",),
    "half": ("newline", "space", "no_final_mark", "doubled", "shuffled", "other", "no_end_token"),
    "doubled": ("newline", "space", "no_final_mark", "half", "shuffled", "other"),
    "shuffled": (),
    "other": (),
    "no_end_token": ("newline", "space", "no_final_mark", "half", "doubled", "shuffled", "other"),
}


def write_rows(file: Path, number: int, seed: int) -> None:
    """Write rows whose answer repeats the three directions of the question, as sentences."""
    draw = random.Random(seed)
    lines = []
    for _ in range(number):
        turns = draw.sample(DIRECTIONS, 3)
        answer = " ".join(f"I go {turn}." for turn in turns)
        lines.append(json.dumps({"content": " ".join(turns), "teacher_response": answer}) + "\n")
    file.write_text("".join(lines))


@pytest.fixture
def run(place: Parallel, tmp_path: Path) -> Run:
    """A run whose tokenizer sees every byte."""
    config = make_run(tmp_path)
    write_rows(tmp_path / "train.jsonl", 40, seed=0)
    write_rows(tmp_path / "eval.jsonl", 8, seed=1)
    config = replace(
        config,
        stages=("adversarial",),
        data=replace(config.data, eval_path=str(tmp_path / "eval.jsonl"), max_response_tokens=128),
        evaluation=replace(config.evaluation, interval=1),
    )
    run = open_run(config, place)
    begin_stage(run)
    return run


def beside_the_teacher(run: Run, prompt: Prompt, text: str, has_end: bool) -> Group:
    """Return a group of one rollout with this text."""
    ids, is_cut = run.codec.encode_response(text, hit_cap=False)
    assert not is_cut
    reason = "stop"
    if not has_end:
        ids, reason = ids[:-1], "length"
    (group,) = run.sampler.with_text(
        [Group(prompt, (Rollout(ids, (0.0,) * len(ids), reason, weights_version=-1),))]
    )
    return group


@pytest.mark.parametrize("learned", SILENT)
def test_a_probe_shows_what_the_discriminator_goes_by(run: Run, learned: str) -> None:
    run.discriminator.begin_stage(3e-3, total_steps=STEPS)
    prompts = run.data.prompts
    for step in range(STEPS):
        groups = []
        for place in range(GROUPS * step, GROUPS * (step + 1)):
            prompt, other = (prompts[at % len(prompts)] for at in (place, place + 1))
            made = variants(prompt.teacher_text, other.teacher_text, prompt.index)
            text = made.get(learned, prompt.teacher_text)
            groups.append(beside_the_teacher(run, prompt, text, learned != "no_end_token"))
        judge_groups(run, groups)
    found = evaluate_held_out(run)
    probes = {key.removeprefix("probe/"): found[key] for key in found if key.startswith("probe/")}
    assert probes["same"] == 0.0
    # In units of the scores' spread: to a discriminator that is swayed, a large part of it.
    assert probes[learned] < -1.0
    assert [name for name in SILENT[learned] if abs(probes[name]) > -0.25 * probes[learned]] == []
