"""Many questions at once, without a file: as a judge asks them."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from megatron_gad.engines.asking.endpoint import Endpoint, Patience, Target
from megatron_gad.engines.asking.failure import Failure, Remedy
from megatron_gad.engines.asking.pool import Limits, Pool, Question, Tally
from megatron_gad.engines.asking.reply import Answer
from tests.hostile_teacher import MODEL, Reply, completion, hostile_teacher, http, ok

Keep = Callable[[Question[str], Answer], Awaitable[str]]


def echo(body: dict[str, Any], attempt: int) -> Reply:
    return ok(completion(body["messages"][-1]["content"].upper()))


def ask(url: str, texts: Sequence[str], keep: Keep, limits: Limits) -> tuple[Tally[str], int]:
    """Ask texts, which are their own keys; return the tally and the number of those done with."""
    done: list[None] = []

    async def run() -> Tally[str]:
        endpoint = Endpoint(Target(url, MODEL, prompt_price=1e6), Patience(1, 0.01))
        questions = [Question(t, [{"role": "user", "content": t}], endpoint) for t in texts]
        pool = Pool(limits, keep, lambda: done.append(None))
        try:
            await pool.run(questions)
        finally:
            await endpoint.close()
        return pool.tally

    return asyncio.run(run()), len(done)


def test_every_answer_goes_to_its_question() -> None:
    texts = [f"text {n}" for n in range(50)]
    kept: dict[str, str] = {}

    async def keep(question: Question[str], answer: Answer) -> str:
        kept[question.key] = answer.text
        return ""

    with hostile_teacher(echo) as teacher:
        tally, num_done = ask(teacher.base_url, texts, keep, Limits(concurrency=8))
    assert kept == {text: text.upper() for text in texts}
    assert (tally.reasons, tally.stopped, num_done) == ({}, "", 50)
    assert (tally.prompt_tokens, tally.completion_tokens, tally.cost) == (150, 250, 150.0)


def test_answers_without_use_are_listed_and_count_as_failures() -> None:
    async def keep(question: Question[str], answer: Answer) -> str:
        return "" if question.key == "good" else "no verdict"

    # Two of no use, a good one, and three of no use, which are enough.
    texts = ["a", "b", "good", "c", "d", "e", "never"]
    with hostile_teacher(echo) as teacher:
        limits = Limits(concurrency=1, stop_after_failures=3)
        tally, num_done = ask(teacher.base_url, texts, keep, limits)
    assert tally.reasons == dict.fromkeys("abcde", "no verdict")
    assert tally.stopped == "3 questions in a row have no answer; no verdict"
    assert (teacher.asked().total(), num_done) == (6, 6)


def test_what_takes_longer_than_it_may_is_given_up() -> None:
    async def keep(question: Question[str], answer: Answer) -> str:
        return ""

    is_over = threading.Event()

    def answer(body: dict[str, Any], attempt: int) -> Reply:
        if body["messages"][-1]["content"] == "slow":
            is_over.wait()
        return echo(body, attempt)

    with hostile_teacher(answer) as teacher:
        tally, num_done = ask(teacher.base_url, ["a", "slow", "b"], keep, Limits(2, most_s=1.5))
        is_over.set()
    assert tally.stopped == "not all were answered in 1.5 s"
    assert (tally.completion_tokens, num_done) == (10, 3)


def test_an_answer_that_cannot_be_kept_ends_the_asking_at_once() -> None:
    async def keep(question: Question[str], answer: Answer) -> str:
        raise OSError("the disk is gone")

    with hostile_teacher(echo) as teacher, pytest.raises(OSError, match="the disk is gone"):
        ask(teacher.base_url, [f"text {n}" for n in range(50)], keep, Limits(concurrency=4))
    assert teacher.asked().total() <= 8


def test_an_endpoint_says_why_it_has_no_answer_and_what_may_help() -> None:
    replies = {"refused": http(400, "no"), "down": http(503, "down"), "key": http(401, "who?")}

    async def failure(url: str, text: str) -> Failure:
        endpoint = Endpoint(Target(url, MODEL), Patience(1, 0.01))
        with pytest.raises(Failure) as error:
            await endpoint.ask([{"role": "user", "content": text}])
        await endpoint.close()
        return error.value

    with hostile_teacher(
        lambda body, attempt: Reply(replies[body["messages"][-1]["content"]])
    ) as teacher:
        found = {text: asyncio.run(failure(teacher.base_url, text)) for text in replies}
    assert {text: str(each) for text, each in found.items()} == {
        "refused": "HTTP 400: no",
        "down": "HTTP 503: down, after 1 retries",
        "key": "HTTP 401: who?",
    }
    assert [each.remedy for each in found.values()] == [
        Remedy.NEXT_QUESTION, Remedy.NEXT_QUESTION, Remedy.NONE
    ]  # fmt: skip
