"""The command on students of every kind, with a judge at a real endpoint."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_gad.engines.base import SamplingConfig
from megatron_gad.evaluation.answers import answer
from megatron_gad.evaluation.command import main
from megatron_gad.evaluation.record_file import content_key
from tests.hostile_teacher import Reply, completion, hostile_teacher, http, ok
from tests.tiny import make_hf_folder
from tests.tiny_tokenizer import make_tokenizer
from tests.unit.evaluation.judging import MODEL, judge_server, part

ROOT = Path(__file__).resolve().parents[3]
COUNT = 24


def write_rows(path: Path, column: str, answers: Sequence[str]) -> str:
    """Write a row for each question."""
    rows = [{"content": f"Question {n}?", column: text} for n, text in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def files(folder: Path, count: int = COUNT) -> list[str]:
    """Write a teacher, a student that is longer on even prompts, and one that always is shorter."""
    teacher = write_rows(folder / "test.jsonl", "teacher_response", ["yes indeed"] * count)
    even = write_rows(folder / "a.jsonl", "answer", ["yes", "yes indeed it is"] * (count // 2))
    short = write_rows(folder / "b.jsonl", "answer", ["yes"] * count)
    students = [f"even={even}:answer", f"short={short}:answer"]
    return ["--students", *students, "--prompts", teacher, "--no-show-progress"]


def longer_wins(prompt: str) -> str:
    """Say as a judge that the longer answer is better."""
    if "<answer_1>" in prompt:
        return f"[[5, {min(10, len(part(prompt, 'answer_2')))}]]"
    if "<answer_a>" not in prompt:
        return "an answer of the judge"
    a, b = len(part(prompt, "answer_a")), len(part(prompt, "answer_b"))
    return f"[[{'C' if a == b else 'A' if a > b else 'B'}]]"


def read(out: Path) -> dict[str, Any]:
    """Return the results."""
    return json.loads((out / "evaluation.json").read_text())


def test_files_of_answers_are_measured_and_judged(tmp_path: Path) -> None:
    with judge_server(lambda prompt, attempt: longer_wins(prompt)) as server:
        judge = ["--judge-url", server.base_url, "--judge-model", MODEL]
        judge += ["--prompt-price", "1", "--completion-price", "1", "--first-wait-s", "0"]
        command = [*files(tmp_path), "--out", str(tmp_path / "out"), *judge]
        assert main(command) == 0
        num_asked = len(server.bodies)
        first = read(tmp_path / "out")
        assert main(command) == 0
        assert len(server.bodies) == num_asked  # all was kept
    even, short = first["students"]["even"], first["students"]["short"]
    assert even["means"]["win"]["mean"] == 0.5
    assert short["means"]["win"]["mean"] == 0.0
    assert short["means"]["win"]["high"] > 0.1  # Wilson's, though no answer won
    # 100 * 3 / (3 + 5) for "yes", 100 * 10 / (10 + 5) for the other.
    assert short["means"]["score"]["mean"] == pytest.approx(37.5)
    assert even["means"]["score"]["mean"] == pytest.approx((37.5 + 200 / 3) / 2)
    assert first["students"]["(teacher)"]["means"]["score"]["mean"] == pytest.approx(200 / 3)
    assert even["numbers"]["order_disagreement"] == 0.0
    assert even["means"]["words"]["mean"] == 2.5
    assert short["means"]["auc_length"]["mean"] == 1.0
    assert "extrapolates" in short["flags"][0]
    # Answers that are alike are one call. A question has one reference; of even questions two
    # answers differ and of odd ones three; there is one pair or there are two, in two orders.
    expected = COUNT + COUNT // 2 * (2 + 3) + COUNT // 2 * 2 * (1 + 2)
    assert first["judge"]["num_calls"] == num_asked == expected
    assert first["judge"]["cost"] == pytest.approx(num_asked * 8e-6)
    (words,) = [each for each in first["differences"] if each["measure"] == "words"]
    assert (words["student"], words["baseline"], words["mean"]) == ("short", "even", -1.5)
    assert not words["is_within_noise"]
    assert read(tmp_path / "out")["judge"]["num_replayed"] == num_asked
    page = (tmp_path / "out/evaluation.md").read_text()
    assert "| wins against the teacher, ties half, % | 50.0" in page
    assert (tmp_path / "out/length.png").stat().st_size > 10_000
    rows = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").open()]
    assert len(rows) == COUNT
    answers = {"even": ["yes indeed it is"], "short": ["yes"]}
    assert rows[1] == {"prompt": "Question 1?", "teacher": ["yes indeed"], "students": answers}


def test_pairs_against_another_student(tmp_path: Path) -> None:
    with judge_server(lambda prompt, attempt: longer_wins(prompt)) as server:
        judge = ["--judge-url", server.base_url, "--judge-model", MODEL, "--protocols", "pairwise"]
        command = [*files(tmp_path), "--out", str(tmp_path / "out"), *judge, "--against", "short"]
        assert main(command) == 0
    students = read(tmp_path / "out")["students"]
    assert students["even"]["means"]["win"]["mean"] == 0.75  # ties and wins
    assert "win" not in students["short"]["means"]


@pytest.mark.slow
def test_five_kills_lose_no_verdict_and_ask_none_twice(tmp_path: Path) -> None:
    kills, concurrency = 5, 3
    gate = threading.Condition()
    num_allowed, num_answered = 0, 0

    def say(prompt: str, attempt: int) -> str:
        nonlocal num_answered
        with gate:
            gate.wait_for(lambda: num_answered < num_allowed)
            num_answered += 1
        return longer_wins(prompt)

    with judge_server(say) as server:
        command = [
            *(
                sys.executable,
                "tools/evaluate.py",
                *files(tmp_path),
                "--out",
                str(tmp_path / "out"),
            ),
            *("--judge-url", server.base_url, "--judge-model", MODEL, "--no-discriminator"),
            *("--concurrency", str(concurrency), "--protocols", "pairwise"),
        ]
        kept = tmp_path / "out/judge.jsonl"
        num_before, known = Counter[str](), set[str]()
        for kill in range(1, kills + 1):
            with gate:
                num_allowed = num_answered + 10
                gate.notify_all()
            with start(command) as process:
                # Those that were in flight at the last kill may take some of the answers.
                wait_for_rows(process, kept, max(1, 10 * kill - concurrency * kill))
                known = {json.loads(line)["key"] for line in whole_lines(kept)}
                process.kill()
            num_before = Counter(texts(server.bodies))
        with gate:
            num_allowed = 10**6
            gate.notify_all()
        with start(command) as process:
            assert process.wait() == 0
        counts = Counter(texts(server.bodies))
    assert sum(counts.values()) <= len(counts) + kills * concurrency
    # What was known at the last kill was not asked again.
    recovered = {text: count for text, count in num_before.items() if key_of(text) in known}
    assert len(recovered) > 10
    assert {text: counts[text] for text in recovered} == recovered
    students = read(tmp_path / "out")["students"]
    assert students["even"]["means"]["win"]["mean"] == 0.5
    assert students["short"]["means"]["win"]["mean"] == 0.0


def texts(bodies: Sequence[dict[str, Any]]) -> list[str]:
    """Return what the judge was asked."""
    return [body["messages"][-1]["content"] for body in bodies]


def key_of(text: str) -> str:
    """Return the key of a first attempt with the command's own options."""
    return content_key([MODEL, {"temperature": 0.0, "max_tokens": 2048}, text, 1])


def start(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start the command."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def whole_lines(path: Path) -> list[bytes]:
    """Return the lines of a file that are written to their end."""
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def wait_for_rows(process: "subprocess.Popen[bytes]", path: Path, count: int) -> None:
    """Return once a file has so many lines."""
    while not path.exists() or len(whole_lines(path)) < count:
        assert process.poll() is None, "the command ended by itself"
        threading.Event().wait(0.02)


@pytest.fixture
def student_folder(tmp_path: Path) -> Path:
    """A tiny model with its tokenizer."""
    make_hf_folder(tmp_path / "student", vocab_size=384)
    make_tokenizer(tmp_path / "student")
    return tmp_path / "student"


def test_a_model_folder_answers_and_its_answers_are_kept(
    tmp_path: Path, student_folder: Path
) -> None:
    prompts = write_rows(tmp_path / "test.jsonl", "teacher_response", ["yes"] * 5)
    command = ["--students", f"s={student_folder}", "--prompts", prompts, "--max-tokens", "6"]
    command += ["--out", str(tmp_path / "out"), "--likelihood", "--no-show-progress"]
    assert main(command) == 0
    kept = tmp_path / "out/answers/s.jsonl"
    lines = kept.read_bytes().splitlines(keepends=True)
    conversations = [[{"role": "user", "content": f"Question {n}?"}] for n in range(5)]
    expected = answer(student_folder, conversations, SamplingConfig(1, 0.0, 6))
    assert [json.loads(line)["answers"][0]["text"] for line in lines] == expected
    # A row that is there is not computed again: a changed one stays changed.
    record = json.loads(lines[0]) | {"answers": [{"text": "kept", "was_cut": False}]}
    kept.write_bytes(b"".join([json.dumps(record).encode() + b"\n", *lines[1:3]]))
    assert main(command) == 0
    rows = [json.loads(line) for line in kept.read_bytes().splitlines()]
    assert [row["answers"][0]["text"] for row in rows] == ["kept", *expected[1:]]
    results = read(tmp_path / "out")["students"]["s"]
    assert results["means"]["cut"]["count"] == 5
    assert results["flags"] == ["no AUC against the teacher: fewer than 20 prompts with an answer "
                                "of the teacher"]  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(student_folder)
    tokenizer = AutoTokenizer.from_pretrained(student_folder)
    assert 0.0 < results["means"]["nats_per_token"]["mean"] < 2 * model.config.vocab_size
    assert len(tokenizer) == 384


@pytest.mark.slow
def test_a_checkpoint_answers_as_the_folder_that_it_is_of(
    tmp_path: Path, student_folder: Path
) -> None:
    prompts = write_rows(tmp_path / "test.jsonl", "teacher_response", ["yes"] * 3)
    checkpoint = tmp_path / "run"
    convert = [sys.executable, "tools/convert_checkpoint.py", "--from-hf", str(student_folder)]
    with start([*convert, "--to-megatron", str(checkpoint)]) as process:
        assert process.wait() == 0
    exported = tmp_path / "exported"
    shutil.copytree(student_folder, exported / "student_hf")
    command = [sys.executable, "-m", "megatron_gad", "evaluate", "--prompts", prompts]
    command += ["--students", f"folder={student_folder}", f"run={checkpoint}", f"out={exported}"]
    command += ["--max-tokens", "6", "--out", str(tmp_path / "verdict"), "--no-show-progress"]
    with start(command) as process:
        assert process.wait() == 0
    answered = [
        [
            json.loads(line)["answers"]
            for line in whole_lines(tmp_path / f"verdict/answers/{name}.jsonl")
        ]
        for name in ("folder", "run", "out")
    ]
    assert answered[0] == answered[1] == answered[2]
    assert len(answered[0]) == 3


def test_instructions_are_answered_by_models_and_checked(
    tmp_path: Path, student_folder: Path
) -> None:
    prompts = write_rows(tmp_path / "test.jsonl", "teacher_response", ["yes"] * 2)
    mine = tmp_path / "mine.jsonl"
    rows = [
        {"id": 1, "prompt": "Say anything.", "checks": [{"check": "words", "at_most": 100}]},
        {"id": 2, "prompt": "Say 99 words.", "checks": [{"check": "words", "at_least": 99}]},
    ]
    mine.write_text("\n".join(map(json.dumps, rows)))
    answered = write_rows(tmp_path / "a.jsonl", "answer", ["yes", "no"])
    command = ["--students", f"s={student_folder}", f"f={answered}:answer", "--prompts", prompts]
    command += ["--out", str(tmp_path / "out"), "--instructions", str(mine), "--max-tokens", "6"]
    assert main([*command, "--no-show-progress"]) == 0
    students = read(tmp_path / "out")["students"]
    assert students["s"]["means"]["instructions_strict"]["mean"] == 0.5
    assert students["s"]["means"]["instructions/words"]["count"] == 2
    assert any("instructions were not answered" in flag for flag in students["f"]["flags"])


def test_an_endpoint_answers_and_is_not_asked_twice(tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "test.jsonl", "teacher_response", ["yes"] * 5)

    def reply(body: dict[str, Any], attempt: int) -> Any:
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("small", 0.7, 9)
        return ok(completion(f"{body['messages'][-1]['content']} {attempt}"))

    with hostile_teacher(reply) as server:
        command = ["--students", f"s={server.base_url}#small", "--prompts", prompts]
        command += ["--out", str(tmp_path / "out"), "--temperature", "0.7", "--max-tokens", "9"]
        command += ["--num-samples", "2", "--no-show-progress"]
        assert main(command) == 0
        assert main(command) == 0
        assert server.asked() == {f"Question {n}?": 2 for n in range(5)}
    results = read(tmp_path / "out")["students"]["s"]
    assert results["means"]["words"]["mean"] == 4.0  # "Question", a number, "?", the attempt
    assert 0.5 < results["means"]["self_bleu"]["mean"] < 1.0


def test_a_prompt_that_an_endpoint_refuses_has_a_blank_answer(tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "test.jsonl", "teacher_response", ["yes"] * 5)

    def reply(body: dict[str, Any], attempt: int) -> Any:
        is_refused = "Question 3" in body["messages"][-1]["content"]
        return Reply(http(400, "{}")) if is_refused else ok(completion("fine"))

    def refuse(body: dict[str, Any], attempt: int) -> Any:
        return Reply(http(401, "{}"))

    out = ["--prompts", prompts, "--out", str(tmp_path / "out"), "--no-show-progress"]
    with hostile_teacher(reply) as server:
        assert main(["--students", f"s={server.base_url}#small", *out]) == 0
    blank = read(tmp_path / "out")["students"]["s"]["means"]["blank"]
    assert (blank["mean"], blank["count"]) == (0.2, 5)
    with hostile_teacher(refuse) as server:
        assert main(["--students", f"other={server.base_url}#small", *out]) == 2


def test_seeds_of_an_arm_have_an_interval_of_their_own(tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "test.jsonl", "teacher_response", ["a b c d"] * 4)
    words = [["a b x x"] * 4, ["a b c x"] * 4, ["a b c d"] * 4]
    paths = [write_rows(tmp_path / f"{n}.jsonl", "answer", each) for n, each in enumerate(words)]
    command = ["--students", *(f"gad={path}:answer" for path in paths), "--prompts", prompts]
    assert main([*command, "--out", str(tmp_path / "out"), "--no-show-progress"]) == 0
    results = read(tmp_path / "out")
    assert [*results["students"]] == ["gad.1", "gad.2", "gad.3", "(teacher)"]
    overlap = results["arms"]["gad"]["f1_1"]
    assert (overlap["mean"], overlap["count"]) == (0.75, 3)
    assert 0.0 < overlap["low"] < 0.75 < overlap["high"] < 1.0
    assert results["arms"]["gad"]["words"]["mean"] == 4.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--students", "x"], "use NAME=WHAT"),
        (["--students", "x=nowhere"], "x: nowhere does not exist"),
        (["--students", "x=http://127.0.0.1/v1"], "names no model"),
        (["--max-cost", "1"], "max_cost = 1.0 without prices"),
        (["--judge-url", "http://127.0.0.1/v1"], "judge_url without judge_model"),
        (
            ["--judge-url", "http://127.0.0.1/v1?key=k"],
            "'http://127.0.0.1/v1' and more from '?' on",
        ),
        (["--judge-extra-body", "[" * 100_000], "no JSON object"),
        (["--against", "nobody"], "against = 'nobody': use one of teacher, even, short"),
        (["--num-samples", "4"], "at temperature 0"),
        (["--max-tokens", "0"], "max_tokens = 0: use 1 or more"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--prompt-column", "question"], "has no column 'question'"),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path, changes: list[str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    given = [*files(tmp_path), "--out", str(tmp_path / "out")]
    if changes[0] in given:
        place = given.index(changes[0])
        end = next(n for n in range(place + 1, len(given)) if given[n].startswith("--"))
        given[place:end] = []
    assert main([*given, *changes]) == 2
    assert message in caplog.text


def test_a_file_without_an_answer_to_a_prompt_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = files(tmp_path)
    write_rows(tmp_path / "b.jsonl", "answer", ["yes"] * (COUNT - 3))
    assert main([*given, "--out", str(tmp_path / "out")]) == 2
    assert f"no answer to 3 of {COUNT} prompts" in caplog.text


def test_prompts_are_made_as_a_run_makes_them(tmp_path: Path, student_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(student_folder)
    tokenizer.chat_template = "{{ style }} " + tokenizer.chat_template
    tokenizer.save_pretrained(student_folder)
    prompts = write_rows(tmp_path / "test.jsonl", "teacher_response", ["yes"] * 2)
    command = ["--students", f"s={student_folder}", "--prompts", prompts, "--max-tokens", "6"]
    command += ["--out", str(tmp_path / "out"), "--no-show-progress", "--no-discriminator"]
    command += ["--system-prompt", "Be brief.", "--chat-template-kwargs", '{"style": "user:"}']
    assert main(command) == 0
    lines = (tmp_path / "out/answers/s.jsonl").read_text().splitlines()
    model: Any = AutoModelForCausalLM.from_pretrained(student_folder)
    for number, line in enumerate(lines):
        asked = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"Question {number}?"},
        ]
        ids = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, return_tensors="pt", return_dict=True, style="user:"
        )
        made = model.generate(**ids, max_new_tokens=6, do_sample=False)[0]
        told = made[ids["input_ids"].shape[1] :]
        text = tokenizer.decode(told, skip_special_tokens=True)
        assert json.loads(line)["answers"][0]["text"] == text
    assert main([*command[:-1], "[]"]) == 2
