"""What checkers and a judge say of a run's greedy answers, which transformers gives as well."""

import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_gad.__main__ import main
from megatron_gad.checks.inputs import read_codecs, read_instructed
from megatron_gad.config.evaluation import EvaluationConfig
from megatron_gad.resume import load_latest, save
from megatron_gad.stages.begin import begin_stage
from megatron_gad.stages.held_out import evaluate_held_out
from tests.hostile_teacher import Reply, completion, hostile_teacher, http, ok
from tests.ranks import statuses_of_ranks
from tests.stage_steps import take_step
from tests.unit.evaluation.judging import MODEL, judge_server, part

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


def greedy_texts(folder: Path, prompts: Sequence[str] = ASKED) -> list[str]:
    """Answer every prompt as transformers does."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    texts = []
    for prompt in prompts:
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


JUDGED = 3


def judge_flags(assets: Path, url: str) -> list[str]:
    """Return the flags of a run that asks a judge at every evaluation."""
    flags = ["--stages", "adversarial", "--data.eval-path", str(assets / "eval.jsonl")]
    flags += ["--evaluation.interval", "1", "--evaluation.num-prompts", str(JUDGED)]
    return [*flags, "--evaluation.judge-url", url, "--evaluation.judge-model", MODEL]


def longer_wins(prompt: str, attempt: int = 1) -> str:
    """Say that the longer answer is better."""
    a, b = len(part(prompt, "answer_a")), len(part(prompt, "answer_b"))
    return f"[[{'C' if a == b else 'A' if a > b else 'B'}]]"


def test_a_judge_compares_the_greedy_answers_with_the_teachers(
    build, assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (assets / "eval.jsonl").read_text().splitlines()[:JUDGED]
    rows = [json.loads(line) for line in lines]
    asked = [row["content"][0]["content"] for row in rows]
    pairs = [*zip(greedy_texts(assets / "student", asked), rows, strict=True)]

    def say(prompt: str, attempt: int) -> str:
        # Of the first question whatever is shown first is better, and the last is left open once.
        if part(prompt, "conversation") == asked[0]:
            return "[[A]]"
        if part(prompt, "conversation") == asked[-1] and attempt == 1:
            return "Who knows?"
        return longer_wins(prompt)

    monkeypatch.setenv("OPENAI_API_KEY", "Hush-7f3a")
    with judge_server(say) as server:
        flags = judge_flags(assets, server.base_url)
        run = build(tmp_path / "run", *flags)
        begin_stage(run)
        found = evaluate_held_out(run)
        run.close()
        bodies = [*server.bodies]
    preferences = [0.5] + [
        0.5
        if len(text) == len(row["teacher_response"])
        else len(text) > len(row["teacher_response"])
        for text, row in pairs[1:]
    ]
    assert found["evaluation/judge_win_rate"] == pytest.approx(sum(preferences) / JUDGED)
    assert found["evaluation/judge_order_disagreement"] == pytest.approx(1 / JUDGED)
    assert found["evaluation/judge_missing_share"] == 0.0
    shown = {
        tuple(part(body["messages"][-1]["content"], name) for name in ("answer_a", "answer_b"))
        for body in bodies
    }
    answers = [(text.strip(), row["teacher_response"]) for text, row in pairs]
    assert {tuple(each.strip() for each in pair) for pair in shown} == {
        *answers,
        *((teacher, own) for own, teacher in answers),
    }
    assert len(bodies) == 2 * JUDGED + 2  # those that were left open were asked for again
    assert {*server.keys} == {"Bearer Hush-7f3a"}
    assert all(body["model"] == MODEL and body["temperature"] == 0.0 for body in bodies)


def test_a_run_that_goes_on_asks_nothing_twice(build, assets: Path, tmp_path: Path) -> None:
    with judge_server(longer_wins) as server:
        flags = judge_flags(assets, server.base_url)
        run = build(tmp_path / "run", *flags)
        stage = begin_stage(run)
        take_step(run, stage)
        save(run, stage)
        take_step(run, stage)
        first = evaluate_held_out(run)
        run.close()
        again = build(tmp_path / "run", *flags)
        resumed = load_latest(again)
        assert resumed is not None
        take_step(again, resumed)
        num_asked = len(server.bodies)
        second = evaluate_held_out(again)
        again.close()
        assert len(server.bodies) == num_asked == 2 * JUDGED
    assert {k: v for k, v in second.items() if "judge" in k} == {
        k: v for k, v in first.items() if "judge" in k
    }


def down(body: dict[str, Any], attempt: int) -> Reply:
    """Answer as a judge whose key is wrong."""
    return Reply(http(401, "who are you?"))


def slow(body: dict[str, Any], attempt: int) -> Reply:
    """Answer a byte a second."""
    return Reply(ok(completion("[[A]]")).raw, pause_s=1.0)


def empty(body: dict[str, Any], attempt: int) -> Reply:
    """Answer without a verdict."""
    return ok(completion("Who knows?"))


@pytest.mark.parametrize(
    ("answer", "phase_s", "reason"),
    [
        (down, 0, "HTTP 401: who are you?"),
        (slow, 8, "not all were answered in 2 s"),
        (empty, 0, "no verdict could be read"),
        (None, 1500, "connection lost or refused"),
    ],
)
def test_a_judge_that_fails_costs_its_number_alone(
    build,
    assets: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    answer: Callable[[dict[str, Any], int], Reply] | None,
    phase_s: int,
    reason: str,
) -> None:
    with hostile_teacher(answer or empty) as server:
        url = server.base_url if answer else "http://127.0.0.1:9/v1"
        run = build(tmp_path / "run", *judge_flags(assets, url), "--watchdog.phase-s", str(phase_s))
        begin_stage(run)
        with caplog.at_level(logging.WARNING):
            found = evaluate_held_out(run)
        run.close()
    assert [name for name in found if "judge" in name] == []
    assert "evaluation/greedy_ngram_f1" in found
    (warning,) = [each for each in caplog.messages if each.startswith("the judge gives no number")]
    assert reason in warning


def test_a_pair_that_the_judge_refuses_is_left_out(
    build, assets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = json.loads((assets / "eval.jsonl").read_text().splitlines()[0])

    def answer(body: dict[str, Any], attempt: int) -> Reply:
        prompt = body["messages"][-1]["content"]
        if part(prompt, "conversation") == first["content"][0]["content"]:
            return Reply(http(400, "such things are not judged"))
        return ok(completion("[[C]]"))

    with hostile_teacher(answer) as server:
        run = build(tmp_path / "run", *judge_flags(assets, server.base_url))
        begin_stage(run)
        found = evaluate_held_out(run)
        run.close()
    assert found["evaluation/judge_win_rate"] == 0.5
    assert found["evaluation/judge_missing_share"] == pytest.approx(1 / JUDGED)
    said = "the judge left 2 calls unanswered, whose pairs do not count: HTTP 400: such things are"
    assert said in caplog.text


def test_verdicts_that_are_something_else_end_no_run(
    build, assets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with judge_server(longer_wins) as server:
        run = build(tmp_path / "run", *judge_flags(assets, server.base_url))
        begin_stage(run)
        (tmp_path / "run/judge.jsonl").write_text("something else\n")
        found = evaluate_held_out(run)
        run.close()
        assert server.bodies == []
    assert "evaluation/judge_win_rate" not in found
    assert "judge.jsonl, line 1: no record" in caplog.text


def test_a_run_whose_judge_goes_away_ends_well_on_one_rank_and_on_two(
    assets: Path, tmp_path: Path
) -> None:
    words = ["examples/tiny/run.toml", "--no-tensorboard", "--adversarial.steps", "2"]
    words += ["--data.path", str(assets / "train.jsonl"), "--student.path", str(assets / "student")]
    words += ["--adversarial.student-lr", "0.02", "--evaluation.max-length-ratio", "9"]
    words += ["--evaluation.select", "evaluation/judge_win_rate"]
    rates = []
    for num_ranks in (1, 2):
        # Of the second evaluation one call is not answered.
        left = iter(range(4 * JUDGED - 1))

        def answer(body: dict[str, Any], attempt: int, left: Iterator[int] = left) -> Reply:
            if next(left, None) is None:
                return down(body, attempt)
            return ok(completion(longer_wins(body["messages"][-1]["content"])))

        folder, log = tmp_path / f"{num_ranks}", tmp_path / "log"
        with hostile_teacher(answer) as server:
            own = [*words, *judge_flags(assets, server.base_url), "--save", str(folder)]
            statuses = statuses_of_ranks(run_command, num_ranks, own, log=log, timeout_s=600)
        assert set(statuses) == {0}, log.read_text()
        assert "the judge gives no number of step 2" in log.read_text()
        steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert ["evaluation/judge_win_rate" in step for step in steps] == [True, False]
        assert json.loads((folder / "results.json").read_text())["best"]["step"] == 1
        rates.append(steps[0]["evaluation/judge_win_rate"])
    assert rates[0] == rates[1]
