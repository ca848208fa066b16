"""What the settings of a collection ask for is what endpoints see and rows hold."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_gad.config.data import DataConfig
from megatron_gad.data.forms import find_form
from megatron_gad.data.teacher.collect import CollectReport, collect
from megatron_gad.data.teacher.config import CollectConfig
from tests.hostile_teacher import MODEL, Reply, completion, delta, hostile_teacher, ok, stream

ROOT = Path(__file__).resolve().parents[4]


def answer_well(body: dict[str, Any], attempt: int) -> Reply:
    return ok(completion(f"{body['model']} says {attempt}"))


def write_prompts(folder: Path, count: int) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"content": f"ask {n}"}) + "\n" for n in range(count)))
    return path


def run(
    folder: Path, urls: Sequence[str], keys: Sequence[str] = ("",), **fields: Any
) -> CollectReport:
    settings = {"first_wait_s": 0.01, "show_progress": False, "model": (MODEL,)} | fields
    config = CollectConfig(tuple(urls), **settings)
    return collect(folder / "prompts.jsonl", folder / "out.jsonl", config, keys)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_request_holds_what_was_set_and_nothing_else(tmp_path: Path) -> None:
    write_prompts(tmp_path, 1)
    with hostile_teacher(answer_well) as teacher:
        run(tmp_path, [teacher.base_url])
        (tmp_path / "out.jsonl").unlink()
        extra = '{"top_p": 0.9, "enable_thinking": false, "provider": {"only": ["a"]}}'
        run(tmp_path, [teacher.base_url], temperature=0.5, max_tokens=7, extra_body=extra)
    plain = {"model": MODEL, "messages": [{"role": "user", "content": "ask 0"}]}
    more = {"top_p": 0.9, "enable_thinking": False, "provider": {"only": ["a"]}}
    assert teacher.bodies == [plain, plain | {"temperature": 0.5, "max_tokens": 7} | more]


def test_a_stream_is_asked_for_with_its_usage(tmp_path: Path) -> None:
    write_prompts(tmp_path, 1)
    usage = {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 6}}
    with hostile_teacher(
        lambda body, attempt: stream(delta(content="a"), delta("stop", content="b"), usage)
    ) as teacher:
        report = run(tmp_path, [teacher.base_url], stream=True)
    (body,) = teacher.bodies
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})
    assert rows(tmp_path / "out.jsonl")[0]["teacher_response"] == "ab"
    assert (report.prompt_tokens, report.completion_tokens) == (4, 6)


def test_a_row_says_where_its_answer_is_from(tmp_path: Path) -> None:
    write_prompts(tmp_path, 1)
    with hostile_teacher(answer_well) as teacher:
        secret = teacher.base_url.replace("http://", "http://user:password@")
        run(tmp_path, [secret])
    (row,) = rows(tmp_path / "out.jsonl")
    assert (row["model"], row["answered_by"], row["reply_id"]) == (MODEL, f"{MODEL}-2", "reply-1")
    assert row["endpoint"] == teacher.base_url
    assert (row["prompt_tokens"], row["completion_tokens"]) == (3, 5)


def test_a_row_is_read_as_training_data(tmp_path: Path) -> None:
    write_prompts(tmp_path, 1)
    message = {"content": "x", "reasoning": "hm"}
    choices = [{"message": message, "finish_reason": "length"}]
    with hostile_teacher(lambda body, attempt: ok(completion("", choices=choices))) as teacher:
        run(tmp_path, [teacher.base_url])
    (row,) = rows(tmp_path / "out.jsonl")
    read = find_form([*row], row, DataConfig()).read(row)
    (answer,) = read.answers
    assert read.messages == ({"role": "user", "content": "ask 0"},)
    assert (answer.text, answer.reasoning, answer.ending) == ("x", "hm", "cut")


def test_a_field_can_be_taken_away(tmp_path: Path) -> None:
    write_prompts(tmp_path, 1)
    with hostile_teacher(answer_well) as teacher:
        extra = '{"stream_options": null}'
        run(tmp_path, [teacher.base_url], stream=True, extra_body=extra)
    (body,) = teacher.bodies
    assert body["stream"] and "stream_options" not in body


def test_several_answers_are_rows_of_their_own_and_resume_one_by_one(tmp_path: Path) -> None:
    write_prompts(tmp_path, 4)
    out = tmp_path / "out.jsonl"
    with hostile_teacher(answer_well) as teacher:
        assert run(tmp_path, [teacher.base_url], num_answers=3).num_collected == 12
        whole = rows(out)
        assert [(row["id"], row["answer"]) for row in whole] == [
            (prompt, answer) for prompt in range(1, 5) for answer in range(1, 4)
        ]
        for prompt in range(4):
            texts = {row["teacher_response"] for row in whole[3 * prompt : 3 * prompt + 3]}
            assert texts == {f"{MODEL} says {attempt}" for attempt in (1, 2, 3)}
        lines = out.read_bytes().splitlines(keepends=True)
        out.write_bytes(b"".join(lines[:4] + lines[5:9]))
        again = run(tmp_path, [teacher.base_url], num_answers=3)
    assert (again.num_recovered, again.num_collected) == (8, 4)
    # Row 4 is the second answer to prompt 1, rows 9 to 11 are all answers to prompt 3.
    asked = {"ask 0": 3, "ask 1": 4, "ask 2": 3, "ask 3": 6}
    assert teacher.asked() == asked
    kept = {(row["id"], row["answer"]): row["teacher_response"] for row in rows(out)}
    assert len(kept) == 12
    assert all(kept[row["id"], row["answer"]] == row["teacher_response"]
               for row in whole[:4] + whole[5:9])  # fmt: skip


def test_a_mixture_asks_each_teacher_by_its_weight_and_with_its_key(tmp_path: Path) -> None:
    write_prompts(tmp_path, 400)
    out = tmp_path / "out.jsonl"
    with hostile_teacher(answer_well) as one, hostile_teacher(answer_well) as two:
        urls = [one.base_url, two.base_url]
        mixture = {"model": ("a", "b"), "weights": (3.0, 1.0), "prompt_price": (1e6, 0.0)}
        report = run(tmp_path, urls, ["key a", "key b"], **mixture)
        whole = rows(out)
        # Three standard deviations of 400 draws with p = 1/4 are 26.
        assert 74 < len(two.bodies) < 126
        assert len(one.bodies) + len(two.bodies) == 400
        assert report.cost == pytest.approx(3 * len(one.bodies))
        assert {*one.keys} == {"Bearer key a"} and {*two.keys} == {"Bearer key b"}
        assert {body["model"] for body in one.bodies} == {"a"}
        for row in whole:
            teacher = one if row["model"] == "a" else two
            assert row["endpoint"] == teacher.base_url
            assert teacher.asked()[row["content"][0]["content"]] == 1
        # What is lost is asked again of the same teachers, whatever the order.
        out.write_bytes(b"".join(reversed(out.read_bytes().splitlines(keepends=True)[::2])))
        run(tmp_path, urls, ["key a", "key b"], **mixture)
        assert [row["model"] for row in rows(out)] == [row["model"] for row in whole]
        with pytest.raises(ValueError, match="the same --model, --weights and --seed"):
            run(tmp_path, urls, ["key a", "key b"], **mixture, seed=1)


def test_the_cost_ends_a_collection_and_counts_what_the_file_holds(tmp_path: Path) -> None:
    write_prompts(tmp_path, 10)
    prices: dict[str, Any] = {"prompt_price": (1e6,), "completion_price": (2e5,)}  # 3 + 1 an answer
    with hostile_teacher(answer_well) as teacher:
        urls, one = [teacher.base_url], {**prices, "concurrency": 1}
        # A fourth answer would cost 12 in all.
        report = run(tmp_path, urls, **one, max_cost=10.0)
        assert (report.num_collected, report.cost, report.num_not_asked) == (2, 8.0, 8)
        said = "cost 8.0000, and one more answer may cost 4.0000: more than max_cost = 10"
        assert report.stopped == said
        assert run(tmp_path, urls, **one, max_cost=11.0).num_collected == 0
        report = run(tmp_path, urls, **one, max_cost=12.0)
        assert (report.num_recovered, report.num_collected, report.cost) == (2, 1, 4.0)
        assert report.stopped == "cost 12.0000 has reached max_cost = 12"
        assert run(tmp_path, urls, **one, max_cost=12.0).num_collected == 0
        # However many might be asked at once.
        report = run(tmp_path, urls, **prices, concurrency=4, max_cost=21.0)
        assert (report.num_collected, report.cost, report.is_complete) == (2, 8.0, False)
        assert teacher.asked().total() == 5


def test_a_cap_of_tokens_says_how_many_may_be_asked_at_once(tmp_path: Path) -> None:
    write_prompts(tmp_path, 20)
    in_flight, most = [0], [0]

    def answer(body: dict[str, Any], attempt: int) -> Reply:
        in_flight[0] += 1
        most[0] = max(most[0], in_flight[0])
        time.sleep(0.1)  # for others to arrive meanwhile
        in_flight[0] -= 1
        return ok(completion("x"))  # of 5 tokens

    with hostile_teacher(answer) as teacher:
        options: dict[str, Any] = {"max_tokens": 8, "completion_price": (1e6,), "concurrency": 16}
        report = run(tmp_path, [teacher.base_url], **options, max_cost=40.0)
    # Five of at most 8 at once; the seventh is asked at a cost of 30, and an eighth might take 43.
    assert (report.num_collected, report.cost, most[0]) == (7, 35.0, 5)


@pytest.mark.parametrize("cap", [{}, {"max_tokens": 8}, {"extra_body": '{"max_tokens": null}'}])
def test_a_limit_of_cost_that_nothing_makes_certain_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cap: dict[str, Any]
) -> None:
    write_prompts(tmp_path, 1)
    with hostile_teacher(answer_well) as teacher:
        prices: dict[str, Any] = {"completion_price": (1.0,), **cap}
        run(tmp_path, [teacher.base_url], **prices)
        assert "max_cost" not in caplog.text
        run(tmp_path, [teacher.base_url], **prices, max_cost=1.0)
    is_certain = "max_tokens" in cap
    assert ("may go beyond max_cost = 1; set max_tokens" in caplog.text) != is_certain


def test_answers_that_are_not_kept_cost_as_well(tmp_path: Path) -> None:
    write_prompts(tmp_path, 4)
    with hostile_teacher(lambda body, attempt: ok(completion(""))) as teacher:
        report = run(tmp_path, [teacher.base_url], prompt_price=(1e6,), concurrency=1, max_cost=8.0)
    assert (report.num_empty, report.cost, report.num_not_asked) == (2, 6.0, 2)


def test_without_token_counts_a_cost_cannot_be_kept_and_nothing_more_is_asked(
    tmp_path: Path,
) -> None:
    write_prompts(tmp_path, 4)
    with hostile_teacher(lambda body, attempt: ok(completion("x", usage=None))) as teacher:
        report = run(tmp_path, [teacher.base_url], prompt_price=(1e6,), concurrency=1, max_cost=5.0)
    assert report.stopped.startswith("the endpoint does not say how many tokens")
    assert (report.num_collected, teacher.asked().total()) == (1, 1)


def test_a_folder_that_is_gone_ends_the_asking_with_one_message(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path, 100)
    folder = tmp_path / "out"

    def answer(body: dict[str, Any], attempt: int) -> Reply:
        if body["messages"][-1]["content"] == "ask 20":
            shutil.rmtree(folder)
        return answer_well(body, attempt)

    with hostile_teacher(answer) as teacher:
        status, said = tool(
            *("--prompts", prompts, "--out", folder / "out.jsonl", "--model", MODEL),
            *("--base-url", teacher.base_url, "--concurrency", "2", "--no-show-progress"),
        )
    assert status == 2
    assert len(said) == 1
    assert said[0].startswith(f"ERROR {folder}/out.jsonl: cannot be written (No such file")
    assert 21 <= teacher.asked().total() <= 24
    assert not folder.exists()


def test_rows_that_fail_cannot_keep_the_others_from_being_asked(tmp_path: Path) -> None:
    write_prompts(tmp_path, 6)

    def answer(body: dict[str, Any], attempt: int) -> Reply:
        is_bad = body["messages"][-1]["content"] in ("ask 0", "ask 1", "ask 2")
        return ok(completion("" if is_bad else "x"))

    with hostile_teacher(answer) as teacher:
        limits: dict[str, Any] = {"concurrency": 1, "stop_after_failures": 2}
        first = run(tmp_path, [teacher.base_url], **limits)
        assert (first.num_collected, first.num_empty, first.num_not_asked) == (0, 2, 4)
        second = run(tmp_path, [teacher.base_url], **limits)
    assert (second.num_collected, second.num_empty, second.num_not_asked) == (3, 3, 0)
    asked = [body["messages"][-1]["content"] for body in teacher.bodies]
    assert asked == [f"ask {n}" for n in (0, 1, 2, 3, 4, 5, 0, 1)]


def test_bad_prompts_are_listed_and_the_others_asked(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"content": "a"}\n{"content": 3}\n{"content": "b"}\n')
    with hostile_teacher(answer_well) as teacher:
        report = run(tmp_path, [teacher.base_url])
    assert (report.num_rows, report.num_collected, report.num_bad_prompts) == (3, 2, 1)
    assert not report.is_complete
    (listed,) = rows(tmp_path / "out.jsonl.failed.jsonl")
    assert listed["id"] == 2 and "prompts.jsonl row 2: " in listed["reason"]


def test_the_tool_takes_a_mixture_and_keys_from_the_environment(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path, 20)
    with hostile_teacher(answer_well) as one, hostile_teacher(answer_well) as two:
        flags = [
            *("--prompts", prompts, "--out", tmp_path / "out.jsonl", "--no-show-progress"),
            *("--base-url", one.base_url, two.base_url, "--model", "a", "b", "--weights", "1", "1"),
            *("--num-answers", "2", "--stream", "--extra-body", '{"top_k": 3}'),
        ]
        status, said = tool(*flags)
        assert status == 2 and "api_key_env names 1 keys for 2 teachers: give 2" in said[-1]
        status, said = tool(*flags, "--api-key-env", "KEY_A", "KEY_B", KEY_A="a")
        assert status == 2 and "KEY_B is not set" in said[-1]
        assert one.bodies == two.bodies == []
        status, said = tool(*flags, "--api-key-env", "KEY_A", "KEY_B", KEY_A="a", KEY_B="b")
    assert status == 0, said
    assert {*one.keys} == {"Bearer a"} and {*two.keys} == {"Bearer b"}
    assert all(body["top_k"] == 3 and body["stream"] for body in one.bodies + two.bodies)
    assert len(rows(tmp_path / "out.jsonl")) == 40


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"extra_body": "{"}, "extra_body = '{': not JSON"),
        ({"extra_body": "[1]"}, "extra_body = '[1]': no JSON object"),
        ({"extra_body": '{"n": 2}'}, "extra_body has 'n': use num_answers instead"),
        ({"extra_body": '{"stream": true}'}, "extra_body has 'stream': use stream instead"),
        ({"num_answers": 0}, "num_answers = 0: use 1 or more"),
        ({"first_wait_s": float("nan")}, "first_wait_s = nan: use 0 or more"),
        ({"max_cost": 0.0, "prompt_price": (1.0,)}, "max_cost = 0.0: use more than 0"),
        ({"max_cost": 1.0}, "max_cost = 1.0 without prices: give prompt_price"),
        ({"weights": (1.0, 2.0, 3.0), "model": ("a", "b")}, "model has 2 values for 3 teachers"),
        ({"weights": (-1.0,)}, "weights = -1.0: use 0 or more"),
        ({"weights": (0.0,)}, "weights are all 0"),
        ({"prompt_price": (float("inf"),)}, "prompt_price = inf: use 0 or more"),
        ({"base_url": ("http://",)}, "base_url = 'http://' is no address"),
        ({"base_url": ("http://[::bad/v1",)}, "is no address"),
        ({"base_url": ("https://host/v1?key=k",)}, "'https://host/v1' and more from '?' on"),
        ({"model": ("a", "")}, "model is empty"),
        ({"model": ()}, "model has 0 values for 1 teachers: give one for all"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(fields: dict[str, Any], said: str) -> None:
    good: dict[str, Any] = {"base_url": ("http://host/v1",), "model": ("m",)}
    config = CollectConfig(**(good | fields))
    with pytest.raises(ValueError) as error:
        config.check()
    assert said in str(error.value)


def tool(*arguments: object, **environment: str) -> tuple[int, list[str]]:
    """Run the tool; return its status and the lines that are neither INFO nor WARNING."""
    command = [sys.executable, "tools/collect_teacher.py", *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "", **environment},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    lines = done.stderr.splitlines()
    return done.returncode, [line for line in lines if not line.startswith(("INFO", "WARNING"))]
