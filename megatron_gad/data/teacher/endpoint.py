"""One question to an OpenAI-compatible chat endpoint, asked until it is answered or refused."""

import asyncio
import json
import logging
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletion

logger = logging.getLogger(__name__)

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
LONGEST_WAIT_S = 60.0


@dataclass(frozen=True)
class RetryConfig:
    """How patient a question is.

    retries: further attempts after a failed one.
    first_wait_s: wait before the first retry; doubles with each, up to a minute, and is shortened
        by a random part of at most a quarter. A longer wait that the endpoint asks for is kept.
    """

    retries: int = 8
    first_wait_s: float = 0.5


@dataclass(frozen=True)
class Answer:
    """What the teacher said, and what the endpoint says that it took, in tokens."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class RowRefused(Exception):
    """This question has no answer; another one may have."""


class EndpointRefused(Exception):
    """No question will be answered: wrong key, unknown model, no credit left."""


class Endpoint:
    """Asks one model with fixed request options.

    model: name of the model.
    retries: reason -> number of retries so far.
    """

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        model: str,
        options: dict[str, Any],
        patience: RetryConfig,
    ) -> None:
        """Options are further fields of each request: temperature, max_tokens."""
        self.model = model
        self.retries: Counter[str] = Counter()
        self._client = client
        self._options = options
        self._patience = patience
        self._jitter = random.Random()

    async def ask(self, messages: list[dict[str, str]]) -> Answer:
        """Return the answer to a conversation.

        Rate limits, server errors, timeouts and lost connections are asked again.

        Raises:
            RowRefused: the endpoint refused this conversation, or the retries are used up.
            EndpointRefused: the endpoint refuses every conversation.
        """
        for attempt in range(self._patience.retries + 1):
            try:
                return _answer(await self._request(messages))
            except (openai.APIError, json.JSONDecodeError) as error:
                reason = _reason(error)
                if _is_final(error):
                    raise EndpointRefused(_with_detail(error)) from error
                if not _is_passing(error):
                    raise RowRefused(_with_detail(error)) from error
                if attempt == self._patience.retries:
                    raise RowRefused(f"{_with_detail(error)}, after {attempt} retries") from error
                wait_s = self._wait_s(attempt, error)
                self.retries[reason] += 1
                logger.info("%s: retry %d in %.1f s", reason, attempt + 1, wait_s)
                await asyncio.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    async def _request(self, messages: list[dict[str, str]]) -> Any:
        # The annotation of the client wants a union of typed dicts for what is plain JSON here.
        plain: Any = messages
        return await self._client.chat.completions.create(
            model=self.model, messages=plain, **self._options
        )

    def _wait_s(self, attempt: int, error: Exception) -> float:
        """Return the wait before the next attempt: doubled each time, and never all at once."""
        doubled = min(LONGEST_WAIT_S, self._patience.first_wait_s * 2.0**attempt)
        return max(doubled * self._jitter.uniform(0.75, 1.0), _asked_wait_s(error))


def open_client(base_url: str, api_key: str, timeout_s: float) -> openai.AsyncOpenAI:
    """Return the official client, without retries of its own so that all of them are counted.

    A server on this machine is reached directly, whatever proxy the environment names.
    """
    is_local = urlsplit(base_url).hostname in LOOPBACK_HOSTS
    return openai.AsyncOpenAI(
        base_url=base_url,
        api_key=api_key or "none",
        timeout=timeout_s,
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False) if is_local else None,
    )


def _answer(completion: Any) -> Answer:
    if not isinstance(completion, ChatCompletion) or not completion.choices:
        raise RowRefused(f"the reply is no chat completion: {str(completion)[:80]!r}")
    choice, usage = completion.choices[0], completion.usage
    return Answer(
        text=choice.message.content or "",
        finish_reason=choice.finish_reason or "unknown",
        prompt_tokens=usage.prompt_tokens if usage else 0,
        completion_tokens=usage.completion_tokens if usage else 0,
    )


def _is_final(error: Exception) -> bool:
    """Return whether every other question would meet the same refusal."""
    if isinstance(error, openai.RateLimitError):
        return error.code == "insufficient_quota"
    return isinstance(
        error, openai.AuthenticationError | openai.PermissionDeniedError | openai.NotFoundError
    )


def _is_passing(error: Exception) -> bool:
    """Return whether the same question may be answered a little later."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 409, 429) or error.status_code >= 500
    return isinstance(error, openai.APIConnectionError)


def _asked_wait_s(error: Exception) -> float:
    """Return the seconds of a Retry-After header, at most a minute; 0 without one."""
    if not isinstance(error, openai.APIStatusError):
        return 0.0
    try:
        asked = float(error.response.headers.get("retry-after", 0.0))
    except ValueError:  # a date, which few endpoints send: our own wait is long enough
        return 0.0
    return min(max(asked, 0.0), LONGEST_WAIT_S)


def _reason(error: Exception) -> str:
    """Return the kind of an error in a few words, the same for errors of the same kind."""
    if isinstance(error, openai.APIStatusError):
        return f"HTTP {error.status_code}"
    if isinstance(error, openai.APITimeoutError):
        return "timeout"
    if isinstance(error, openai.APIConnectionError):
        return "connection lost or refused"
    return f"unreadable reply ({type(error).__name__})"


def _with_detail(error: Exception) -> str:
    detail = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
    return f"{_reason(error)}: {' '.join(str(detail).split())[:200]}"
