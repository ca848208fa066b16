"""One odd answer of every kind among good ones: kept or listed, and the rest goes on."""

import gzip
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from megatron_gad.data.teacher.collect import CollectReport, collect
from megatron_gad.data.teacher.config import CollectConfig
from tests.hostile_teacher import (
    MODEL,
    HostileTeacher,
    Reply,
    completion,
    delta,
    hostile_teacher,
    http,
    ok,
    stream,
)

GOOD = ("one", "two", "four", "five")


def choice(**fields: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "x"}
    return {"index": 0, "message": message, "finish_reason": "stop"} | fields


def content(value: Any, **fields: Any) -> Reply:
    return ok(completion({"role": "assistant", "content": value, **fields}))


def usage(value: Any) -> Reply:
    return ok(completion("x", usage=value))


def finish(value: Any, text: str = "x") -> Reply:
    return ok(completion("", choices=[choice(message={"content": text}, finish_reason=value)]))


def error(status: int, message: Any, *headers: str, **fields: Any) -> Reply:
    return Reply(http(status, json.dumps({"error": {"message": message, **fields}}), *headers))


TEXT = {"type": "text", "text": "x"}
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
WHOLE = ok(completion("x"))

# 70 MB that come as 70 kB.
BOMB = gzip.compress(b" " * 70_000_000, 1)
PACKED = ("Content-Type: application/json", "Content-Encoding: gzip")

LISTED = {
    "packed reply that fills the memory": (
        Reply(http(200, BOMB, *PACKED)),
        "the reply is too large: more than 64,000,000 bytes",
    ),
    "packed error that fills the memory": (
        Reply(http(400, BOMB, *PACKED)),
        "the reply is too large: more than 64,000,000 bytes",
    ),
    "lone surrogate": (content("x \ud800 y"), "holds half of a surrogate pair"),
    "number as content": (content(5), "content.str: Input should be a valid string"),
    "object as content": (content({"a": 1}), "content.str: Input should be a valid string"),
    "list of numbers as content": (content([1]), "content.str: Input should be a valid string"),
    "picture in the content": (content([TEXT, {"type": "image_url"}]), "part of type 'image_url'"),
    "thoughts alone": (content(None, reasoning_content="hm"), "after reasoning alone"),
    "content null": (content(None), "empty response, finish_reason stop"),
    "content empty": (content(""), "empty response, finish_reason stop"),
    "content blank": (content(" \n\t\u00a0\u3000"), "empty response, finish_reason stop"),
    "call of a tool": (content(None, tool_calls=[{"id": "1"}]), "the answer calls a tool"),
    "message null": (ok(completion("", choices=[choice(message=None)])), "message is null"),
    "no message": (ok(completion("", choices=[{"index": 0}])), "message is null"),
    "choices null": (ok(completion("", choices=None)), "it has no choices"),
    "choices empty": (ok(completion("", choices=[])), "it has no choices"),
    "choices a string": (ok(completion("", choices="abc")), "choices: Input should be a valid"),
    "a choice that is null": (ok(completion("", choices=[None])), "choices.0: Input should be"),
    "a list": (ok([]), "the whole: Input should be"),
    "a string": (ok("x"), "the whole: Input should be"),
    "null": (ok(None), "the whole: Input should be"),
    "a number": (ok(5), "the whole: Input should be"),
    "an object of something else": (ok({"id": "x"}), "it has no choices"),
    "content filter": (finish("content_filter"), "broken off after 1 characters, finish_reason co"),
    "filter of another name": (finish("SAFETY"), "broken off after 1 characters, finish_reason SA"),
    "aborted": (finish("abort"), "broken off after 1 characters, finish_reason abort"),
    "finish_reason error": (finish("error"), "finish_reason error, after 1 retries"),
    "cut JSON": (Reply(http(200, b'{"choices": [{"mess')), "unreadable reply"),
    "no JSON": (Reply(http(200, b"{{{{")), "unreadable reply"),
    "empty body": (Reply(http(200, b"")), "unreadable reply"),
    "deep JSON": (Reply(http(200, b"[" * 200_000)), "unreadable reply: RecursionError"),
    "deep JSON of an error": (Reply(http(400, b"[" * 200_000)), "HTTP 400: [[["),
    "not UTF-8": (Reply(http(200, b'{"choices": "\xff\xfe"}')), "unreadable reply: UnicodeDecode"),
    "a number of many digits": (Reply(http(200, b"9" * 5000)), "unreadable reply: ValueError"),
    "page of a proxy": (Reply(http(200, b"<html>login</html>")), "<html>login</html>"),
    "page of a gateway": (Reply(http(502, b"<html>bad</html>")), "HTTP 502: <html>bad</html>"),
    "no gzip": (Reply(http(200, b"no", "Content-Encoding: gzip")), "connection lost or refused"),
    "no content": (Reply(b"HTTP/1.1 204 No Content\r\n\r\n"), "unreadable reply"),
    "redirect to nowhere": (
        Reply(http(302, b"", "Location: http://127.0.0.1:9/v1")),
        "connection lost or refused",
    ),
    "redirect in a circle": (
        Reply(http(307, b"", "Location: /v1/chat/completions")),
        "connection lost or refused",
    ),
    "no HTTP": (Reply(b"GARBAGE\r\n\r\n", is_cut=True), "connection lost or refused"),
    "huge header": (
        Reply(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 500_000 + b"\r\n\r\n", is_cut=True),
        "connection lost or refused",
    ),
    "chunks without a length": (
        Reply(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", is_cut=True),
        "connection lost or refused",
    ),
    "body cut": (Reply(WHOLE.raw[:-20], is_cut=True), "connection lost or refused"),
    "nothing": (Reply(b"", is_cut=True), "connection lost or refused"),
    "refused": (error(400, "your words are bad"), "HTTP 400: your words are bad"),
    "refused by moderation": (error(403, "flagged"), "HTTP 403: flagged"),
    "too long": (error(413, "too long"), "HTTP 413: too long"),
    "a message that is an object": (error(400, {"a": [1]}), 'HTTP 400: {"a": [1]}'),
    "a message with half a surrogate pair": (error(400, "\ud800"), "HTTP 400: \\ud800"),
    "tea": (Reply(http(418, b"tea")), "HTTP 418: tea"),
    "wait until a date": (
        error(429, "wait", "Retry-After: Wed, 21 Oct 2099 07:28:00 GMT"),
        "HTTP 429: wait, after 1 retries",
    ),
    "wait for no number": (error(429, "wait", "Retry-After: nan"), "HTTP 429: wait, after 1"),
    "wait backwards": (error(429, "wait", "Retry-After: -5"), "HTTP 429: wait, after 1 retries"),
    "too slow for a gateway": (error(408, "slow"), "HTTP 408: slow, after 1 retries"),
    "too early": (error(425, "early"), "HTTP 425: early, after 1 retries"),
    "in conflict": (error(409, "busy"), "HTTP 409: busy, after 1 retries"),
    "overloaded": (error(529, "overloaded"), "HTTP 529: overloaded, after 1 retries"),
    "error with status 200": (
        ok({"error": {"message": "overloaded", "code": 529}}),
        "error 529 with status 200: overloaded, after 1 retries",
    ),
    "refusal with status 200": (
        ok({"error": {"message": "too long", "code": 400}}),
        "error 400 with status 200: too long",
    ),
    "refusal with status 200 and no number": (
        ok({"error": {"message": "too long", "type": "invalid_request_error"}}),
        "error with status 200: too long",
    ),
    "error beside choices": (
        ok(completion("x", error={"message": "broke", "code": "server_error"})),
        "error with status 200: broke, after 1 retries",
    ),
    "error in a choice": (
        ok(completion("", choices=[choice(error={"message": "provider broke", "code": 502})])),
        "error 502 with status 200: provider broke, after 1 retries",
    ),
    "error that is a string": (ok({"error": "broke"}), "error with status 200: broke, after 1"),
    "error by its kind of object": (
        ok({"object": "error", "message": "bad", "type": "BadRequestError", "code": 400}),
        "error 400 with status 200: bad",
    ),
    "error without a name": (ok({"code": "Throttling", "message": "slow"}), "slow, after 1"),
    "stream without an end": (stream(delta(content="x"), done=False), "the stream ended early"),
    "stream of nothing": (stream({}), "it has no choices"),
    "stream of no JSON": (Reply(http(200, b"data: {{{\n\n")), "unreadable reply"),
    "stream with an error": (
        stream(delta(content="x"), {"error": {"message": "broke", "code": 503}}),
        "error 503 with status 200: broke, after 1 retries",
    ),
}  # fmt: skip

KEPT = {
    "parts": (content([THOUGHT, TEXT, {"type": "text", "text": "y"}]), "xy", "hm", (3, 5)),
    "reasoning_content": (content("x", reasoning_content="hm"), "x", "hm", (3, 5)),
    "reasoning": (content("x", reasoning="hm", tool_calls=[]), "x", "hm", (3, 5)),
    "reasoning that is an object": (content("x", reasoning={"a": 1}), "x", "", (3, 5)),
    "half a surrogate pair in the thoughts": (
        content("x", reasoning="\ud800"), "x", "\\ud800", (3, 5)
    ),
    "usage null": (usage(None), "x", "", (None, None)),
    "usage empty": (usage({}), "x", "", (None, None)),
    "usage a string": (usage("x"), "x", "", (None, None)),
    "counts null": (usage({"prompt_tokens": None}), "x", "", (None, None)),
    "counts that are strings": (usage({"prompt_tokens": "7"}), "x", "", (None, None)),
    "counts out of range": (
        usage({"prompt_tokens": -(10**18), "completion_tokens": 10**30}), "x", "", (None, None)
    ),
    "one count": (usage({"completion_tokens": 7}), "x", "", (None, 7)),
    "characters that some take for the end of a line": (
        content("a\u2028b\x85c\rd\n\x0be\ufeff"), "a\u2028b\x85c\rd\n\x0be\ufeff", "", (3, 5)
    ),
    "nul": (content("a\x00b"), "a\x00b", "", (3, 5)),
    "white space at both ends": (content("  x\n "), "  x\n ", "", (3, 5)),
    "names that are no strings": (ok(completion("x", id=5, model=["m"])), "x", "", (3, 5)),
    "byte order mark": (Reply(http(200, b"\xef\xbb\xbf" + WHOLE.raw.split(b"\r\n\r\n")[1])),
                        "x", "", (3, 5)),
    "compressed": (
        Reply(http(200, gzip.compress(WHOLE.raw.split(b"\r\n\r\n")[1]), "Content-Encoding: gzip")),
        "x", "", (3, 5),
    ),
    "stream": (
        stream(
            delta(role="assistant", content=""),
            delta(reasoning_content="h"), delta(reasoning_content="m"),
            delta(content="x"), delta(content=" \u2028y"), delta("stop"),
            {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9}},
        ),
        "x \u2028y", "hm", (3, 9),
    ),
    "stream that cuts a character in two": (
        stream(delta(content="x\ud83d"), delta("stop", content="\ude00y")), "x\U0001f600y", "",
        (None, None),
    ),
    "stream without its last line": (stream(delta("stop", content="x"), done=False), "x", "",
                                     (None, None)),
    "stream with a null delta": (
        stream(delta(content="x"), {"choices": [{"delta": None, "finish_reason": "stop"}]}),
        "x", "", (None, None),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Collected:
    """One collection in which every odd answer was given, each to a prompt of its own.

    rows: prompt -> its row in the file.
    reasons: prompt -> why it has none.
    asked: prompt -> number of requests.
    """

    report: CollectReport
    rows: dict[str, dict[str, Any]]
    reasons: dict[str, str]
    asked: Counter[str]


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Collected:
    folder = tmp_path_factory.mktemp("hostile")
    odd = {name: listed[0] for name, listed in LISTED.items()}
    odd |= {name: kept[0] for name, kept in KEPT.items()}
    prompts = [*odd, *GOOD]
    report, teacher = run(folder, prompts, odd, stop_after_failures=0)
    reasons = rows(folder / "out.jsonl.failed.jsonl")
    return Collected(
        report,
        {row["content"][0]["content"]: row for row in rows(folder / "out.jsonl")},
        {prompts[row["id"] - 1]: row["reason"] for row in reasons},
        teacher.asked(),
    )


def run(
    folder: Path, prompts: Sequence[str], odd: Mapping[str, Reply], **fields: Any
) -> tuple[CollectReport, HostileTeacher]:
    def answer(body: dict[str, Any], attempt: int) -> Reply:
        asked = body["messages"][-1]["content"]
        return odd.get(asked) or ok(completion(f"answer to {asked}"))

    lines = [json.dumps({"content": prompt}) for prompt in prompts]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    with hostile_teacher(answer) as teacher:
        settings = {"first_wait_s": 0.01, "show_progress": False, "retries": 1} | fields
        config = CollectConfig((teacher.base_url,), (MODEL,), **settings)
        return collect(folder / "prompts.jsonl", folder / "out.jsonl", config), teacher


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_odd_answers_do_not_end_a_collection(collected: Collected) -> None:
    report = collected.report
    assert report.num_collected == len(KEPT) + len(GOOD)
    assert report.num_failed + report.num_empty == len(LISTED)
    assert report.stopped == "" and report.num_not_asked == 0
    for prompt in GOOD:
        assert collected.rows[prompt]["teacher_response"] == f"answer to {prompt}"


@pytest.mark.parametrize("name", LISTED)
def test_an_odd_answer_is_listed_with_its_reason(collected: Collected, name: str) -> None:
    _, expected = LISTED[name]
    assert expected in collected.reasons[name]
    assert name not in collected.rows
    # What may pass is asked again, and nothing else is paid for twice.
    if "redirect" not in name:
        assert collected.asked[name] == 1 + ("after 1 retries" in collected.reasons[name])


@pytest.mark.parametrize("name", KEPT)
def test_an_odd_answer_with_a_text_is_kept(collected: Collected, name: str) -> None:
    _, text, reasoning, tokens = KEPT[name]
    row = collected.rows[name]
    assert (row["teacher_response"], row["reasoning_content"]) == (text, reasoning)
    assert (row["prompt_tokens"], row["completion_tokens"]) == tokens
    assert row["finish_reason"] == "stop"
    assert collected.asked[name] == 1


def test_how_an_answer_ended_is_in_its_row(tmp_path: Path) -> None:
    endings = {
        "cut": (finish("length"), "length"),
        "cut, in other words": (finish("MAX_TOKENS"), "MAX_TOKENS"),
        "cut by the model's context": (finish("model_length"), "model_length"),
        "ended, in other words": (finish("end_turn"), "end_turn"),
        "null": (finish(None), ""),
        "a number": (finish(7), ""),
        "an object": (finish({"a": 1}), ""),
    }
    odd = {name: ending[0] for name, ending in endings.items()}
    report, _ = run(tmp_path, [*odd], odd)
    kept = [row["finish_reason"] for row in rows(tmp_path / "out.jsonl")]
    assert kept == [ending[1] for ending in endings.values()]
    assert report.num_truncated == 3


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (error(401, "no such key"), "HTTP 401: no such key"),
        (error(402, "no credit"), "HTTP 402: no credit"),
        (error(404, "no such model"), "HTTP 404: no such model"),
        (error(429, "pay", code="insufficient_quota"), "HTTP 429: pay"),
        (ok({"error": {"message": "no key", "code": 401}}), "error 401 with status 200: no key"),
        (ok({"error": {"message": "pay", "code": "insufficient_quota"}}), "200: pay"),
    ],
)
def test_what_no_other_prompt_would_change_stops_the_asking(
    tmp_path: Path, odd: Reply, said: str
) -> None:
    prompts = ["one", "two", "odd", "four", "five"]
    report, teacher = run(tmp_path, prompts, {"odd": odd}, concurrency=1)
    assert said in report.stopped
    assert (report.num_collected, report.num_not_asked, report.retries) == (2, 3, {})
    assert teacher.asked().total() == 3


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_server_that_drips_holds_no_request_for_longer_than_the_timeout(
    tmp_path: Path, is_streamed: bool
) -> None:
    whole = stream(*[delta(content="x")] * 9) if is_streamed else WHOLE
    dripping = replace(whole, pause_s=0.1)  # half a minute for the whole, never a long silence
    settings: dict[str, Any] = {"timeout_s": 4.0, "retries": 0, "stream": is_streamed}
    report, _ = run(tmp_path, [*GOOD, "odd"], {"odd": dripping}, **settings)
    (listed,) = rows(tmp_path / "out.jsonl.failed.jsonl")
    assert listed["reason"] == "timeout: no whole answer in 4 s, after 0 retries"
    assert (report.num_collected, report.num_failed) == (4, 1)


def test_a_key_that_the_endpoint_repeats_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"content": "one"}))
    reply = error(401, "bad key sk-SECRET")
    with hostile_teacher(lambda body, attempt: reply) as teacher:
        config = CollectConfig((teacher.base_url,), (MODEL,), show_progress=False)
        report = collect(tmp_path / "prompts.jsonl", tmp_path / "o.jsonl", config, ["sk-SECRET"])
    assert teacher.keys == ["Bearer sk-SECRET"]
    assert report.stopped == "HTTP 401: bad key (the key)"
