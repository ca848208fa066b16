"""Instructions that the student of a run follows, as transformers answers them."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_gad.__main__ import main
from megatron_gad.checks.inputs import read_codecs, read_instructed
from megatron_gad.config.evaluation import EvaluationConfig
from megatron_gad.stages.begin import begin_stage
from megatron_gad.stages.held_out import evaluate_held_out
from tests.ranks import statuses_of_ranks
from tests.stage_steps import take_step

# Each is asked of some of these; none of them are rows of the tiny example.
ASKED = ("face west", "turn left", "face north turn right", "turn back back", "face south left")
MOST_TOKENS = 24


@pytest.fixture(scope="module")
def starred(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student with " >" and " *" exchanged, so that it writes stars, which loose forgives."""
    folder = tmp_path_factory.mktemp("starred") / "student"
    shutil.copytree(assets / "student", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    one, other = (tokenizer.encode(mark)[0] for mark in (" >", "*"))
    weights = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name][[one, other]] = weights[name][[other, one]]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_instructions(file: Path, checks: Sequence[dict[str, Any]]) -> Path:
    """Write a set in which each check is asked with every prompt."""
    rows = [
        {"id": f"{place}.{number}", "prompt": prompt, "checks": [check]}
        for place, check in enumerate(checks)
        for number, prompt in enumerate(ASKED)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def flags_of(assets: Path, student: Path, file: Path) -> list[str]:
    """Return the flags of a run that evaluates after every step."""
    flags = ["--student.path", str(student), "--data.eval-path", str(assets / "eval.jsonl")]
    flags += ["--evaluation.interval", "1", "--evaluation.num-prompts", "3"]
    return [*flags, "--evaluation.instructions", str(file)]


def greedy_texts(folder: Path) -> list[str]:
    """Answer every prompt as transformers does."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    texts = []
    for prompt in ASKED:
        messages = [{"role": "user", "content": prompt}]
        written = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        ids = torch.tensor([tokenizer.encode(written)])
        found = model.generate(ids, do_sample=False, max_new_tokens=MOST_TOKENS)[0, ids.shape[1] :]
        texts.append(tokenizer.decode([each for each in found if each != tokenizer.eos_token_id]))
    return texts


def test_greedy_answers_are_checked_strictly_and_loosely(
    build, assets: Path, starred: Path, tmp_path: Path
) -> None:
    texts = greedy_texts(starred)
    checks = [{"check": "without", "characters": "*"}, {"check": "keywords", "all_of": ["left"]}]
    strict = sum("*" not in text for text in texts) + sum("left" in text for text in texts)
    loose = sum(bool(t.replace("*", "").strip()) for t in texts) + sum("left" in t for t in texts)
    assert 0 < strict < loose < 2 * len(ASKED)  # the three outcomes are told apart
    file = write_instructions(tmp_path / "mine.jsonl", checks)
    run = build(tmp_path / "run", "--stages", "adversarial", *flags_of(assets, starred, file))
    begin_stage(run)
    found = evaluate_held_out(run)
    run.close()
    assert found["evaluation/instructions_strict"] == strict / (2 * len(ASKED))
    assert found["evaluation/instructions_loose"] == loose / (2 * len(ASKED))


def test_the_student_that_has_learned_is_asked(build, assets: Path, tmp_path: Path) -> None:
    checks = [{"check": "keywords", "all_of": [word]} for word in ("left", "right", "north")]
    file = write_instructions(tmp_path / "mine.jsonl", checks)
    flags = ["--stages", "adversarial", "--adversarial.student-lr", "0.02"]
    run = build(tmp_path / "run", *flags, *flags_of(assets, assets / "student", file))
    stage = begin_stage(run)
    for _ in range(2):
        take_step(run, stage)
    found = evaluate_held_out(run)
    weights = {name: tensor.clone() for name, tensor in run.student.hf_weights()}
    run.close()
    folder = tmp_path / "moved"
    shutil.copytree(assets / "student", folder)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    texts = greedy_texts(folder)
    followed = sum(word in text for word in ("left", "right", "north") for text in texts)
    assert texts != greedy_texts(assets / "student")
    assert found["evaluation/instructions_strict"] == followed / (3 * len(ASKED))


def run_command(words: list[str]) -> int:
    """Run the command in this process."""
    sys.argv = ["megatron_gad", *words]
    return main()


def test_two_data_ranks_share_the_instructions_and_find_what_one_does(
    assets: Path, starred: Path, tmp_path: Path
) -> None:
    checks = [{"check": "without", "characters": "*"}, {"check": "ends_with", "phrase": "left"}]
    file = write_instructions(tmp_path / "mine.jsonl", checks[:1])
    with file.open("a") as rows:  # an odd number
        row = {"id": "last", "prompt": "turn turn", "checks": checks}
        rows.write(json.dumps(row) + "\n" + json.dumps(row | {"id": "same"}) + "\n")
    found = []
    for num_ranks in (1, 2):
        save = tmp_path / f"{num_ranks}"
        words = ["examples/tiny/run.toml", "--no-tensorboard", "--save", str(save)]
        words += ["--stages", "warmup", "--warmup.steps", "1", "--warmup.student-lr", "1e-6"]
        words += ["--warmup.discriminator-only-steps", "0"]
        words += ["--data.path", str(assets / "train.jsonl"), *flags_of(assets, starred, file)]
        words += ["--evaluation.select", "evaluation/instructions_loose"]
        words += ["--evaluation.max-length-ratio", "9"]
        log = tmp_path / "log"
        statuses = statuses_of_ranks(run_command, num_ranks, words, log=log, timeout_s=600)
        assert set(statuses) == {0}, log.read_text()
        assert "evaluation/instructions_strict: " in log.read_text()
        step = json.loads((save / "metrics.jsonl").read_text())
        found.append([step[f"evaluation/instructions_{kind}"] for kind in ("strict", "loose")])
        best = json.loads((save / "results.json").read_text())["best"]
        assert best["evaluation/instructions_loose"] == found[-1][1]
    assert found[0] == found[1]
    assert 0 < found[0][0] < found[0][1]


def test_instructions_that_cannot_be_asked_are_refused(
    configure, assets: Path, tmp_path: Path
) -> None:
    def refusal(file: Path, *flags: str) -> str:
        own = EvaluationConfig(interval=1, instructions=str(file))
        config = configure(tmp_path / "run", *flags, evaluation=vars(own))
        with pytest.raises(ValueError, match=r"evaluation.instructions = ") as raised:
            read_instructed(config, read_codecs(config))
        return str(raised.value).removeprefix(f"evaluation.instructions = {str(file)!r}: ")

    file = write_instructions(tmp_path / "mine.jsonl", [{"check": "lowercase"}])
    # The template's two tokens, and two words; "face north turn right" has two more, as one has.
    assert refusal(file, "--data.max-prompt-tokens", "5") == (
        "1 of 5 prompts are longer than data.max_prompt_tokens = 5, the first is '0.2'; the "
        "longest has 6 tokens: raise the limit, or leave them out"
    )
    assert "only the roles user and assistant" in refusal(file, "--data.system-prompt", "Be brief.")
    write_instructions(file, [{"check": "wordz"}])
    assert f"{file}, line 1: KeyError: 'wordz'" in refusal(file)
    off = configure(tmp_path / "run", evaluation={"interval": 0, "instructions": str(file)})
    assert read_instructed(off, read_codecs(off)) == ((), ())
