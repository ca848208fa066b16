"""What an evaluation is told: who answers, what, who judges, and when to stop."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from megatron_gad.engines.asking.endpoint import Patience, Target
from megatron_gad.engines.asking.pool import Limits
from megatron_gad.engines.asking.settings import address_problem, is_json_object
from megatron_gad.environment import ENDPOINT_KEY

TEACHER = "teacher"
Protocol = Literal["rating", "pairwise"]


@dataclass(frozen=True)
class EndpointOptions:
    """The judge, and how endpoints are asked.

    Attributes:
        judge_url: URL of the judge's endpoint, with its version: https://api.openai.com/v1. Without
            one nothing is judged.
        judge_model: name of the judge at the endpoint.
        judge_key_env: environment variable with the judge's key.
        protocols: rating: the judge answers itself, then rates both answers from 1 to 10 in one
            call. pairwise: it names the better of two answers, in both orders.
        against: whom pairs are compared with: the teacher's text, or the name of a student.
        judge_prompts: folder with rating.txt, reference.txt or pairwise.txt, in place of the
            package's.
        judge_temperature: temperature of the judge; negative: the endpoint decides.
        judge_max_tokens: cap of the judge's answers; 0: the endpoint decides.
        judge_extra_body: JSON object with further fields of every request to the judge.
        prompt_price: price of a million tokens that the judge reads.
        completion_price: price of a million tokens that the judge writes.
        max_cost: cost of the judge at which no more is asked; 0: none.
        concurrency: questions in flight.
        retries: further attempts after a failure that may pass.
        first_wait_s: wait before the first retry; doubles with each, up to a minute.
        timeout_s: longest time for one attempt.
        stop_after_failures: questions without an answer, one after another, that end the asking.
    """

    judge_url: str = ""
    judge_model: str = ""
    judge_key_env: str = ENDPOINT_KEY
    protocols: tuple[Protocol, ...] = ("rating", "pairwise")
    against: str = TEACHER
    judge_prompts: Path | None = None
    judge_temperature: float = 0.0
    judge_max_tokens: int = 2048
    judge_extra_body: str = "{}"
    prompt_price: float = 0.0
    completion_price: float = 0.0
    max_cost: float = 0.0
    concurrency: int = 16
    retries: int = 8
    first_wait_s: float = 0.5
    timeout_s: float = 120.0
    stop_after_failures: int = 50

    @property
    def patience(self) -> Patience:
        """How long a question is asked."""
        return Patience(self.retries, self.first_wait_s, self.timeout_s)

    @property
    def limits(self) -> Limits:
        """How many questions are in flight, and when no more are asked."""
        most = self.max_cost or math.inf
        return Limits(self.concurrency, self.stop_after_failures, most, self.timeout_s)

    def judge(self, key: str) -> Target:
        """Return the judge with its key."""
        options: dict[str, Any] = {}
        if self.judge_temperature >= 0:
            options["temperature"] = self.judge_temperature
        if self.judge_max_tokens:
            options["max_tokens"] = self.judge_max_tokens
        options |= json.loads(self.judge_extra_body)
        options = {name: value for name, value in options.items() if value is not None}
        prices = self.prompt_price, self.completion_price
        return Target(self.judge_url, self.judge_model, key, options, *prices)


@dataclass(frozen=True)
class EvaluateOptions:
    """Let students answer prompts, and measure the answers.

    Attributes:
        students: NAME=WHAT, each a Hugging Face folder, a run directory, a checkpoint in it, a file
            of answers (FILE or FILE:COLUMN), or an endpoint (https://host/v1#MODEL). Several with
            one name are seeds of one arm. The first is what the others are compared with.
        prompts: files with prompts, and with the teacher's answers as far as there are any.
        out: folder of the results, of the answers and of all verdicts; the same command goes on
            from what it holds.
        prompt_column: column of the conversation.
        teacher_column: column of the teacher's answer, or of a list of them.
        num_prompts: use the first so many; 0: all.
        num_samples: answers of a student to each prompt. The first is judged; more show how they
            differ and which of a teacher's answers they cover.
        temperature: temperature of the students' sampling; 0 is greedy.
        max_tokens: cap of an answer in tokens.
        max_prompt_tokens: longest prompt of a folder's model; a longer one is refused.
        system_prompt: system turn of conversations that have none, as data.system_prompt of a run.
        chat_template_kwargs: JSON object with further arguments of a folder's chat template, as
            data.chat_template_kwargs of a run.
        seed: seed of the draws, of the halves and of the intervals.
        engine: what runs folders: this process, or an SGLang server that is started for it.
        sglang_python: interpreter of the environment that has SGLang; by default this one.
        student_key_env: environment variable with the key of students' endpoints.
        discriminator: train a fresh discriminator on half of the prompts.
        likelihood: how likely folders find the teacher's text; a pass over all of it.
        instructions: instructions that a program checks: "packaged", or a file; empty: none.
        show_progress: progress bars on stderr.
        endpoint: the judge.
    """

    students: tuple[str, ...]
    prompts: tuple[str, ...]
    out: Path
    endpoint: Annotated[EndpointOptions, tyro.conf.arg(name="")]
    prompt_column: str = "content"
    teacher_column: str = "teacher_response"
    num_prompts: int = 0
    num_samples: int = 1
    temperature: float = 0.0
    max_tokens: int = 1536
    max_prompt_tokens: int = 2048
    system_prompt: str = ""
    chat_template_kwargs: str = "{}"
    seed: int = 0
    engine: Literal["embedded", "sglang"] = "embedded"
    sglang_python: str = ""
    student_key_env: str = ENDPOINT_KEY
    discriminator: bool = True
    likelihood: bool = False
    instructions: str = ""
    show_progress: bool = True

    def check(self) -> None:
        """Raise ValueError naming every option that cannot be used."""
        wrong = [*self._bad_numbers(), *self._bad_judge()]
        if self.num_samples > 1 and self.temperature == 0.0:
            wrong.append(
                f"num_samples = {self.num_samples} at temperature 0: all would be the same; use a "
                "temperature above 0"
            )
        if not is_json_object(self.chat_template_kwargs):
            wrong.append(
                f"chat_template_kwargs = {self.chat_template_kwargs!r}: no JSON object, such as "
                """'{"enable_thinking": false}'"""
            )
        if wrong:
            raise ValueError("; ".join(wrong))

    @property
    def template_arguments(self) -> dict[str, Any]:
        """What the chat template of a folder is given."""
        return json.loads(self.chat_template_kwargs)

    def _bad_numbers(self) -> list[str]:
        least = {
            "num_prompts": 0, "num_samples": 1, "temperature": 0, "max_tokens": 1,
            "max_prompt_tokens": 1,
        }  # fmt: skip
        of_endpoints = {
            "judge_max_tokens": 0, "prompt_price": 0, "completion_price": 0, "max_cost": 0,
            "concurrency": 1, "retries": 0, "first_wait_s": 0, "timeout_s": 1,
            "stop_after_failures": 0,
        }  # fmt: skip
        return [*_too_small(self, least), *_too_small(self.endpoint, of_endpoints)]

    def _bad_judge(self) -> list[str]:
        endpoint, wrong = self.endpoint, []
        if endpoint.judge_url and not endpoint.judge_model:
            wrong.append("judge_url without judge_model: name a model that the endpoint serves")
        if endpoint.judge_url and (problem := address_problem(endpoint.judge_url)):
            wrong.append(f"judge_url = {problem}")
        if endpoint.max_cost and not (endpoint.prompt_price or endpoint.completion_price):
            wrong.append(
                f"max_cost = {endpoint.max_cost} without prices: give prompt_price and "
                "completion_price"
            )
        if not is_json_object(endpoint.judge_extra_body):
            wrong.append(f"judge_extra_body = {endpoint.judge_extra_body!r}: no JSON object")
        return wrong


def _too_small(options: Any, least: Mapping[str, float]) -> Sequence[str]:
    return [
        f"{name} = {getattr(options, name)}: use {bound} or more"
        for name, bound in least.items()
        if not getattr(options, name) >= bound
    ]
