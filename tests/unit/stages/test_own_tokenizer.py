"""A discriminator of another family reads the same texts with its own tokenizer and template."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from megatron_gad.checks.inputs import read_codecs, read_rows
from megatron_gad.checks.run import check_config
from megatron_gad.config.run import RunConfig
from megatron_gad.runtime.run import Run
from megatron_gad.stages.begin import begin_stage, open_run
from megatron_gad.stages.discriminator_step import judge_groups
from megatron_gad.training.parallel import Parallel
from megatron_gad.types import Group, Rollout
from tests.e2e import tiny_run
from tests.tiny import make_hf_folder
from tests.tiny_run import make_run
from tests.tiny_tokenizer import make_tokenizer

CAP = 20
ROWS = [
    ("which way do you face?", "turn right, so the answer is north."),
    ("東京?", "Größe 🙂"),
]
SHORT = "turn right, turn"  # an engine may cut earlier, which leaves it without an end token
LONG = "turn right, turn left, turn back, turn right, turn left, turn back and turn right"


def scorer_folder(folder: Path) -> Path:
    """Write a discriminator whose vocabulary, template and family are others."""
    make_hf_folder(folder, "llama", vocab_size=331, max_position_embeddings=256, seed=5)
    make_tokenizer(folder, "llama3", vocab_size=330)
    return folder


def configure(folder: Path, rows: Sequence[tuple[Any, str]] = ROWS) -> RunConfig:
    """Return a run whose discriminator is of another family."""
    config = make_run(folder)
    lines = [json.dumps({"content": x, "teacher_response": y}) + "\n" for x, y in rows]
    Path(config.data.path).write_text("".join(lines))
    warmup = dataclasses.replace(config.warmup, prompts_per_step=len(rows), group_size=3)
    return dataclasses.replace(
        config,
        stages=("warmup",),
        warmup=warmup,
        data=dataclasses.replace(config.data, max_response_tokens=CAP),
        discriminator=dataclasses.replace(
            config.discriminator, path=str(scorer_folder(folder / "scorer")), head_std=0.3
        ),
    )


def rollout(run: Run, text: str) -> Rollout:
    """Return what an engine gives for a text: with its end, or cut at the cap or before."""
    ids, is_cut = run.codec.encode_response(text, hit_cap=text == SHORT)
    return Rollout(ids, (-1.0,) * len(ids), "length" if is_cut else "stop", 0)


def scores_by_transformers(run: Run, groups: Sequence[Group], cut: int) -> list[list[float]]:
    """Score teacher and rollouts of every group with plain transformers, from their text.

    cut: the tokens that are left of texts that the cap cut.
    """
    folder = run.config.discriminator.path
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    head = dict(run.discriminator.hf_weights())["score.weight"]
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    scores: list[list[float]] = []
    for group in groups:
        messages = [*group.prompt.messages]
        asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(asked, add_special_tokens=False)["input_ids"]
        scores.append([])
        for text in (group.prompt.teacher_text, *(each.text for each in group.rollouts)):
            response = tokenizer(text, add_special_tokens=False)["input_ids"]
            whole = [*response, end]
            if LONG.startswith(text):  # its end was cut off, so it has no end token
                whole = response[:cut]
            with torch.no_grad():
                hidden = model(torch.tensor([[*prompt, *whole]])).last_hidden_state
            scores[-1].append(float(hidden[0, -1] @ head[0]))
    return scores


def test_scores_are_those_of_transformers_on_the_discriminators_own_ids(
    place: Parallel, tmp_path: Path
) -> None:
    config = configure(tmp_path)
    assert check_config(config, world_size=1) == []
    run = open_run(config, place)
    try:
        begin_stage(run)
        sampled = [
            Group(prompt, tuple(rollout(run, text) for text in (prompt.teacher_text, "west", cut)))
            for prompt, cut in zip(run.data.prompts, (LONG, SHORT), strict=True)
        ]
        groups = run.sampler.with_text(sampled)
        own: Any = AutoTokenizer.from_pretrained(config.discriminator.path)
        kept = run.codec.decode_response(run.codec.encode_response(LONG)[0])
        own_cut = own(kept, add_special_tokens=False)["input_ids"]
        assert len(own_cut) != CAP and own.decode(own_cut) == kept
        expected = scores_by_transformers(run, groups, min(CAP, len(own_cut)))
        judged = judge_groups(run, groups)
        for row, scores in zip(expected, judged.scores_PG.tolist(), strict=True):
            assert scores == pytest.approx(row[1:], abs=2e-5)
            assert scores[0] == pytest.approx(row[0], abs=2e-5)  # the teacher's text, as it is
        gaps = [row[0] - score for row in expected for score in row[1:]]
        loss = -torch.nn.functional.logsigmoid(torch.tensor(gaps)).mean()
        assert judged.step.output.metrics["loss"] == pytest.approx(float(loss), rel=1e-4)
        # The student learns what it sampled, by its own ids.
        assert [each.ids for each in groups[0].rollouts] == [
            each.ids for each in sampled[0].rollouts
        ]
    finally:
        run.close()


def test_tokens_that_are_shown_are_those_of_the_discriminators_own_tokenizer(
    place: Parallel, tmp_path: Path
) -> None:
    config = configure(tmp_path)
    of_scorer = dataclasses.replace(config.discriminator, score="mean")
    run = open_run(dataclasses.replace(config, discriminator=of_scorer), place)
    try:
        begin_stage(run)
        own: Any = AutoTokenizer.from_pretrained(config.discriminator.path)
        text = "東京, turn right 🙂"
        groups = run.sampler.with_text(
            [Group(prompt, (rollout(run, text),)) for prompt in run.data.prompts]
        )
        judged = judge_groups(run, groups, shows=True)
        assert set(judged.tokens) == {0, 1}
        for group, scores in zip(groups, judged.scores_PG.tolist(), strict=True):
            _, tokens = judged.tokens[group.prompt.index]
            ids = own(text, add_special_tokens=False)["input_ids"]
            assert "".join(piece or "" for piece, _ in tokens) == text
            assert (len(tokens), tokens[-1][0]) == (len(ids) + 1, None)
            mean = sum(value for _, value in tokens) / len(tokens)
            assert mean == pytest.approx(scores[0], abs=2e-5)
        # Nothing is read by token without need.
        assert judge_groups(run, groups).tokens == {}
    finally:
        run.close()


def test_prompts_that_its_template_or_the_cap_does_not_take_are_left_out(tmp_path: Path) -> None:
    rows = [*ROWS, ([{"role": "user", "content": "no"}, {"role": "tool", "content": "x"}], "y")]
    config = configure(tmp_path, [*rows, ("7" * 90, "seven")])
    file = Path(config.discriminator.path) / "chat_template.jinja"
    refusal = "{% for turn in messages if turn.role == 'tool' %}{{ raise_exception('no tools') }}"
    file.write_text(refusal + "{% endfor %}" + "{{ '......' * 3 }}" + file.read_text())
    codecs = read_codecs(config)
    loaded = read_rows(config, codecs)
    assert [prompt.index for prompt in loaded.prompts] == [0, 1, 3]
    assert any(
        "the discriminator's tokenizer: the chat template refuses" in each
        for each in loaded.warnings
    )
    longest = max(len(prompt.ids) for prompt in loaded.prompts)
    assert [len(prompt.scorer_ids) > longest for prompt in loaded.prompts] == [False, False, True]
    tight = dataclasses.replace(
        config, data=dataclasses.replace(config.data, max_prompt_tokens=longest)
    )
    loaded = read_rows(tight, read_codecs(tight))
    assert [prompt.index for prompt in loaded.prompts] == [0, 1]
    assert loaded.counts["num_dropped_long_prompt"] == 1


@pytest.mark.slow
def test_a_run_with_it_exports_the_discriminator_with_its_tokenizer(tmp_path: Path) -> None:
    folder = scorer_folder(tmp_path / "scorer")
    flags = ["--stages", "warmup", "adversarial", "--discriminator.path", str(folder)]
    flags += ["--warmup.steps", "2", "--adversarial.steps", "1"]
    flags += ["--export", "student", "discriminator"]
    steps = tiny_run.run(tmp_path / "run", *flags, num_ranks=2)
    assert len(steps) == 3
    exported = tmp_path / "run" / "discriminator_hf"
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (exported / name).read_bytes() == (folder / name).read_bytes()
    student = tmp_path / "run" / "student_hf" / "tokenizer.json"
    assert student.read_bytes() != (folder / "tokenizer.json").read_bytes()
