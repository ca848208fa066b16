"""What a collection is told: whom to ask, how, and when to stop."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from megatron_gad.engines.asking.endpoint import Patience, Target
from megatron_gad.engines.asking.pool import Limits
from megatron_gad.engines.asking.settings import address_problem

Value = TypeVar("Value")

# Fields of a request that the collector sets itself, and the setting that does so.
OWN_FIELDS = {"model": "model", "messages": "prompts", "stream": "stream", "n": "num_answers"}
# The lists of a mixture, of which each has one value for all teachers or one for each.
PER_TEACHER = ("base_url", "model", "weights", "prompt_price", "completion_price")


@dataclass(frozen=True)
class CollectConfig:
    """Whom to ask, and how. Several URLs or models are a mixture of teachers.

    Attributes:
        base_url: URL of the endpoint, with its version: https://api.openai.com/v1. One for all
            teachers, or one for each, as with model, weights and the prices.
        model: name of the teacher at the endpoint; kept in every row.
        weights: share of the rows that each teacher gets, relative to the others.
        seed: seed of the draw that gives each row its teacher.
        num_answers: responses to collect for each prompt, a row each.
        concurrency: questions in flight.
        stream: whether to ask for a stream, which some models insist on.
        temperature: temperature of the sampling; without it the endpoint decides.
        max_tokens: cap of a response; without it the endpoint decides.
        extra_body: JSON object with further fields of every request; null takes a field away.
        retries: further attempts after a rate limit, a server error, a timeout, a lost connection
            or a reply that cannot be read.
        first_wait_s: wait before the first retry; doubles with each, up to a minute.
        timeout_s: longest time for one attempt, from the connection to the last byte.
        stop_after_failures: number of rows without a response, one after another, that ends the
            asking; 0: none.
        prompt_column: column with the messages, or with a string that is one user message.
        prompt_price: price of a million tokens of prompts.
        completion_price: price of a million tokens of responses.
        max_cost: most that the rows in the file and all answers of this call may cost. Without
            max_tokens the answers in flight may go beyond it.
        show_progress: a progress bar on stderr.
    """

    base_url: tuple[str, ...]
    model: tuple[str, ...]
    weights: tuple[float, ...] = (1.0,)
    seed: int = 0
    num_answers: int = 1
    concurrency: int = 16
    stream: bool = False
    temperature: float | None = None
    max_tokens: int | None = None
    extra_body: str = "{}"
    retries: int = 8
    first_wait_s: float = 0.5
    timeout_s: float = 120.0
    stop_after_failures: int = 50
    prompt_column: str = "content"
    prompt_price: tuple[float, ...] = (0.0,)
    completion_price: tuple[float, ...] = (0.0,)
    max_cost: float | None = None
    show_progress: bool = True

    @property
    def num_teachers(self) -> int:
        """The number of teachers in the mixture."""
        return max(len(getattr(self, name)) for name in PER_TEACHER)

    @property
    def patience(self) -> Patience:
        """How long a question is asked."""
        return Patience(self.retries, self.first_wait_s, self.timeout_s)

    @property
    def limits(self) -> Limits:
        """How many questions are in flight, and when no more are asked."""
        max_cost = math.inf if self.max_cost is None else self.max_cost
        return Limits(self.concurrency, self.stop_after_failures, max_cost, self.timeout_s)

    def check(self) -> None:
        """Raise ValueError naming every field that cannot be used."""
        wrong = [*self._bad_numbers(), *self._bad_lists(), *self._bad_extra_body()]
        if wrong:
            raise ValueError("; ".join(wrong))

    def targets(self, api_keys: Sequence[str]) -> list[Target]:
        """Return the teachers; api_keys: one for all, or one for each."""
        count = self.num_teachers
        columns = zip(
            spread(self.base_url, count),
            spread(self.model, count),
            spread(api_keys, count),
            spread(self.prompt_price, count),
            spread(self.completion_price, count),
            strict=True,
        )
        return [
            Target(url, model, key, self._options(), prompt_price, completion_price)
            for url, model, key, prompt_price, completion_price in columns
        ]

    def _options(self) -> dict[str, Any]:
        """Return the optional fields of each request."""
        options: dict[str, Any] = {}
        if self.temperature is not None:
            options["temperature"] = self.temperature
        if self.max_tokens is not None:
            options["max_tokens"] = self.max_tokens
        if self.stream:
            options |= {"stream": True, "stream_options": {"include_usage": True}}
        options |= json.loads(self.extra_body)
        return {name: value for name, value in options.items() if value is not None}

    def _bad_numbers(self) -> list[str]:
        at_least = {
            "num_answers": 1, "concurrency": 1, "retries": 0, "first_wait_s": 0,
            "stop_after_failures": 0,
        }  # fmt: skip
        wrong = [
            f"{name} = {getattr(self, name)}: use {least} or more"
            for name, least in at_least.items()
            if not getattr(self, name) >= least
        ]
        if not self.timeout_s > 0:
            wrong.append(f"timeout_s = {self.timeout_s}: use more than 0")
        if self.max_tokens is not None and self.max_tokens < 1:
            wrong.append(f"max_tokens = {self.max_tokens}: use 1 or more, or leave it out")
        if self.max_cost is not None and not self.max_cost > 0:
            wrong.append(f"max_cost = {self.max_cost}: use more than 0, or leave it out")
        if self.max_cost is not None and not any((*self.prompt_price, *self.completion_price)):
            wrong.append(
                f"max_cost = {self.max_cost} without prices: give prompt_price and completion_price"
            )
        return wrong

    def _bad_lists(self) -> list[str]:
        count = self.num_teachers
        wrong = [
            f"{name} has {len(getattr(self, name))} values for {count} teachers: give one for all,"
            " or one for each"
            for name in PER_TEACHER
            if len(getattr(self, name)) not in (1, count)
        ]
        for name in ("weights", "prompt_price", "completion_price"):
            values = getattr(self, name)
            if not all(0 <= value < math.inf for value in values):
                wrong.append(f"{name} = {' '.join(map(str, values))}: use 0 or more")
        if not any(weight > 0 for weight in self.weights):
            wrong.append("weights are all 0: give one teacher more")
        problems = [address_problem(url) for url in self.base_url]
        wrong += [f"base_url = {problem}" for problem in problems if problem]
        if not all(self.model):
            wrong.append("model is empty: use a name that the endpoint serves")
        return wrong

    def _bad_extra_body(self) -> list[str]:
        try:
            extra = json.loads(self.extra_body)
        except (ValueError, RecursionError) as error:
            return [f"extra_body = {self.extra_body!r}: not JSON ({error}); use braces"]
        if not isinstance(extra, dict):
            return [f"extra_body = {self.extra_body!r}: no JSON object; use braces"]
        return [
            f"extra_body has {name!r}: use {setting} instead"
            for name, setting in OWN_FIELDS.items()
            if name in extra
        ]


def spread(values: Sequence[Value], count: int) -> Sequence[Value]:
    """Return one value for each of count teachers."""
    return values if len(values) == count else [values[0]] * count
