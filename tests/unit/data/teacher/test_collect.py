"""Collecting over real HTTP from a server that fails on purpose."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from examples.quickstart.data import collect_data, write_prompts
from examples.quickstart.robot_turns import Split, count_words, split_prompts, teacher_answer
from examples.quickstart.teacher_server import MODEL, Faults, serve
from megatron_gad.data.teacher.collect import CollectReport, collect
from megatron_gad.data.teacher.config import CollectConfig

ROOT = Path(__file__).resolve().parents[4]
PROMPTS = split_prompts(seed=0).train[:120]


def run(folder: Path, base_url: str, api_key: str = "", **fields: Any) -> CollectReport:
    prompts = folder / "prompts.jsonl"
    if not prompts.exists():
        write_prompts(prompts, "t", PROMPTS)
    settings = {"first_wait_s": 0.01, "show_progress": False, "concurrency": 8} | fields
    config = CollectConfig(base_url=(base_url,), model=(MODEL,), **settings)
    return collect(prompts, folder / "out.jsonl", config, [api_key])


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answered(path: Path, base_url: str | None = None) -> list[dict[str, Any]]:
    """Return rows without what differs from run to run, after a look at it."""
    found = rows(path)
    for row in found:
        age = datetime.now(timezone.utc) - datetime.fromisoformat(row.pop("time"))
        assert timedelta(0) <= age < timedelta(hours=1)
        endpoint = row.pop("endpoint")
        assert endpoint == base_url if base_url else endpoint.startswith("http://127.0.0.1:")
    return found


def expected(prompts: Sequence[str], seed: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "id": f"t-{index:05d}",
            "answer": 1,
            "content": [{"role": "user", "content": prompt}],
            "teacher_response": teacher_answer(prompt, seed),
            "reasoning_content": "",
            "finish_reason": "stop",
            "model": MODEL,
            "answered_by": MODEL,
            "reply_id": "chatcmpl-0",
            "prompt_tokens": len(prompt.split()),
            "completion_tokens": count_words(teacher_answer(prompt, seed)),
        }
        for index, prompt in enumerate(prompts)
    ]


def test_every_prompt_gets_its_response_in_order_and_tokens_are_costed(tmp_path: Path) -> None:
    with serve(seed=0) as url:
        report = run(tmp_path, url, prompt_price=(1.0,), completion_price=(10.0,))
    assert answered(tmp_path / "out.jsonl", url) == expected(PROMPTS)
    assert (report.num_collected, report.retries, report.is_complete) == (120, {}, True)
    # The server counts words: 8 or 9 of a prompt, 14 to 18 of a response.
    assert report.prompt_tokens == sum(len(prompt.split()) for prompt in PROMPTS)
    assert 14 * 120 < report.completion_tokens < 18 * 120
    cost = (report.prompt_tokens + 10 * report.completion_tokens) / 1e6
    assert report.cost == pytest.approx(cost)
    assert not (tmp_path / "out.jsonl.failed.jsonl").exists()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failing_requests_are_retried_and_counted(tmp_path: Path, status: int) -> None:
    # 120 answers with every fourth request failing take 159 requests, of which 39 fail.
    with serve(faults=Faults(fail_every=4, fail_status=status)) as url:
        report = run(tmp_path, url)
    assert report.retries == {f"HTTP {status}": 39}
    assert report.is_complete
    assert answered(tmp_path / "out.jsonl") == expected(PROMPTS)


def test_a_wait_that_the_endpoint_asks_for_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_prompts(tmp_path / "prompts.jsonl", "t", PROMPTS[:3])
    with caplog.at_level("INFO"), serve(faults=Faults(fail_every=3, retry_after_s=0.3)) as url:
        report = run(tmp_path, url)
    assert report.retries == {"HTTP 429": 1}
    (message,) = [text for text in caplog.messages if text.startswith("HTTP 429")]
    assert message.endswith("request 3 fails on purpose: retry 1 in 0.3 s")


def test_a_local_endpoint_is_reached_past_a_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    write_prompts(tmp_path / "prompts.jsonl", "t", PROMPTS[:3])
    with serve() as url:
        assert run(tmp_path, url, retries=0).is_complete


def test_lost_connections_are_retried_and_counted(tmp_path: Path) -> None:
    with serve(faults=Faults(drop_every=5)) as url:
        report = run(tmp_path, url)
    assert report.retries == {"connection lost or refused": 29}  # of 149 requests
    assert answered(tmp_path / "out.jsonl") == expected(PROMPTS)


def test_a_slow_endpoint_times_out_and_is_reported(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", "t", PROMPTS[:2])
    with serve(faults=Faults(delay_s=5.0)) as url:
        report = run(tmp_path, url, timeout_s=0.2, retries=1)
    assert (report.num_failed, report.retries) == (2, {"timeout": 2})
    reasons = rows(tmp_path / "out.jsonl.failed.jsonl")
    assert sorted(row["id"] for row in reasons) == ["t-00000", "t-00001"]
    assert all(row["reason"].startswith("timeout") for row in reasons)


def test_rows_that_fail_are_listed_and_asked_again_next_time(tmp_path: Path) -> None:
    with serve(faults=Faults(fail_every=6)) as url:
        report = run(tmp_path, url, retries=0)
    failed = {row["id"] for row in rows(tmp_path / "out.jsonl.failed.jsonl")}
    collected = {row["id"] for row in rows(tmp_path / "out.jsonl")}
    assert (report.num_failed, len(failed), report.num_collected) == (20, 20, 100)
    assert failed.isdisjoint(collected) and len(failed | collected) == 120
    with serve() as url:
        again = run(tmp_path, url)
    assert (again.num_recovered, again.num_collected, again.is_complete) == (100, 20, True)
    # Only what was missing is paid for.
    missing = [prompt for index, prompt in enumerate(PROMPTS) if f"t-{index:05d}" in failed]
    assert again.prompt_tokens == sum(len(prompt.split()) for prompt in missing)
    assert answered(tmp_path / "out.jsonl") == expected(PROMPTS)
    assert not (tmp_path / "out.jsonl.failed.jsonl").exists()


def test_a_row_that_the_endpoint_refuses_fails_without_retries(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", "t", [*PROMPTS[:3], "what is love"])
    with serve() as url:
        report = run(tmp_path, url)
    assert (report.num_collected, report.num_failed, report.retries) == (3, 1, {})
    (refused,) = rows(tmp_path / "out.jsonl.failed.jsonl")
    assert refused["id"] == "t-00003"
    assert "HTTP 400" in refused["reason"] and "'what is love'" in refused["reason"]


def test_empty_responses_are_counted_and_not_kept(tmp_path: Path) -> None:
    with serve(faults=Faults(empty_every=10)) as url:
        report = run(tmp_path, url)
    assert (report.num_empty, report.num_failed, report.num_collected) == (12, 0, 108)
    assert not report.is_complete
    reasons = rows(tmp_path / "out.jsonl.failed.jsonl")
    assert [row["reason"] for row in reasons] == ["empty response, finish_reason stop"] * 12


def test_a_wrong_key_stops_the_collection_at_once(tmp_path: Path) -> None:
    with serve(faults=Faults(fail_every=1, fail_status=401)) as url:
        report = run(tmp_path, url)
    assert (report.num_collected, report.num_failed, report.num_not_asked) == (0, 0, 120)
    assert report.stopped.startswith("HTTP 401") and not report.retries


def test_an_endpoint_that_answers_nothing_stops_the_collection(tmp_path: Path) -> None:
    with serve(faults=Faults(fail_every=1, fail_status=500)) as url:
        report = run(tmp_path, url, retries=1, stop_after_failures=10, concurrency=4)
    assert report.stopped.startswith("10 questions in a row have no answer; HTTP 500")
    assert 10 <= report.num_failed <= 14
    assert report.num_failed + report.num_not_asked == 120


def test_a_killed_collection_goes_on_where_it_was(tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    write_prompts(prompts, "t", PROMPTS)
    with serve(faults=Faults(delay_s=0.05)) as url:
        killed = start_tool(prompts, out, url, "--concurrency", "4")
        wait_for_rows(killed, out, 20)
        killed.send_signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
        with out.open("ab") as file:
            file.write(b'{"id": "t-00119", "content": [{"ro')
        num_before = len(out.read_bytes().splitlines()) - 1
        resumed = start_tool(prompts, out, url, "--concurrency", "16")
        _, said = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, said
    assert 20 <= num_before < 120
    assert "removed a half-written last line" in said
    assert f"120 of 120 rows have a response ({num_before} from before" in said
    assert answered(out) == expected(PROMPTS)


def test_an_interrupted_collection_ends_with_one_message_and_whole_rows(tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    write_prompts(prompts, "t", PROMPTS)
    with serve(faults=Faults(delay_s=0.05)) as url:
        interrupted = start_tool(prompts, out, url, "--no-show-progress")
        wait_for_rows(interrupted, out, 20)
        interrupted.send_signal(signal.SIGINT)
        _, said = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130
    assert said == f"ERROR interrupted; the same command goes on from the rows in {out}\n"
    by_id = {row["id"]: row for row in expected(PROMPTS)}
    kept = answered(out)
    assert 20 <= len(kept) < 120
    assert all(row == by_id[row["id"]] for row in kept)


def test_the_tool_exits_with_one_when_rows_failed_and_says_where(tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    write_prompts(prompts, "t", [*PROMPTS[:3], "what is love"])
    with serve() as url:
        tool = start_tool(prompts, out, url)
        _, said = tool.communicate(timeout=60)
        assert tool.returncode == 1
        (error,) = [line for line in said.splitlines() if line.startswith("ERROR")]
        assert "1 failed, 0 empty, 0 not asked" in error and f"{out}.failed.jsonl" in error
        prompts.write_text('{"content": "x"')
        tool = start_tool(prompts, out, url)
        _, said = tool.communicate(timeout=60)
    assert tool.returncode == 2
    assert f"ERROR {prompts} has no prompt that can be asked; {prompts} row 1: is not JSON" in said


def test_the_quickstart_collects_its_three_files(tmp_path: Path) -> None:
    split = Split(train=PROMPTS[:5], validation=PROMPTS[5:8], test=PROMPTS[8:10])
    files = collect_data(tmp_path, seed=7, split=split)
    for path, prompts in ((files.train, split.train), (files.test, split.test)):
        responses = [row["teacher_response"] for row in rows(path)]
        assert responses == [teacher_answer(prompt, seed=7) for prompt in prompts]
    assert [row["id"] for row in rows(files.validation)] == [
        f"validation-{i:05d}" for i in range(3)
    ]
    assert collect_data(tmp_path, seed=7, split=split) == files


def test_the_server_process_ends_with_its_block(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", "t", PROMPTS[:2])
    with serve() as url:
        assert run(tmp_path, url).is_complete
    (tmp_path / "out.jsonl").unlink()
    report = run(tmp_path, url, retries=0)
    assert report.num_failed == 2
    (first, _) = rows(tmp_path / "out.jsonl.failed.jsonl")
    assert first["reason"].startswith("connection lost or refused")


def test_all_that_is_wrong_in_the_configuration_is_said_at_once(tmp_path: Path) -> None:
    config = CollectConfig(
        base_url=("host",), model=("",), concurrency=0, timeout_s=0, max_tokens=0
    )
    with pytest.raises(ValueError) as error:
        collect(tmp_path / "none.jsonl", tmp_path / "out.jsonl", config)
    for part in (
        "concurrency = 0",
        "timeout_s = 0",
        "max_tokens = 0",
        "base_url = 'host'",
        "model",
    ):
        assert part in str(error.value)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("end", ["", "/"])
def test_a_base_url_is_without_the_route(tmp_path: Path, end: str) -> None:
    config = CollectConfig(base_url=(f"http://host/v1/chat/completions{end}",), model=(MODEL,))
    with pytest.raises(ValueError, match="ends in /chat/completions, which is added to it; leave"):
        collect(tmp_path / "none.jsonl", tmp_path / "out.jsonl", config)


def start_tool(prompts: Path, out: Path, url: str, *flags: str) -> "subprocess.Popen[str]":
    command = [
        *(sys.executable, "tools/collect_teacher.py", "--prompts", str(prompts)),
        *("--out", str(out), "--base-url", url, "--model", MODEL, *flags),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "secret"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_rows(process: "subprocess.Popen[str]", out: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while not out.exists() or out.read_bytes().count(b"\n") < count:
        assert process.poll() is None, "the collector ended by itself"
        assert time.monotonic() < deadline, "the collector wrote too few rows in a minute"
        time.sleep(0.01)
