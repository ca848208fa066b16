"""One model at an OpenAI-compatible chat endpoint, asked until it answers or refuses."""

import asyncio
import json
import logging
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import openai

from megatron_gad.engines.asking.failure import Failure, Remedy, status_failure
from megatron_gad.engines.asking.reply import Answer, read_answer

logger = logging.getLogger(__name__)

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
LONGEST_WAIT_S = 60.0
MOST_REPLY_BYTES = 64_000_000
# Fields of a request that cap the tokens of an answer, and tokens that templates add to a turn.
CAPS = ("max_tokens", "max_completion_tokens")
TURN_TOKENS = 16
# Headers about how a body came, which is here as it was meant.
OF_THE_WIRE = ("content-encoding", "content-length", "transfer-encoding")

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Patience:
    """How long a question is asked.

    retries: further attempts after a failed one.
    first_wait_s: wait before the first retry; doubles with each, up to a minute, and is shortened
        by a random part of at most a quarter. A longer wait that the endpoint asks for is kept.
    timeout_s: the longest that one attempt takes, from the connection to the last byte.
    """

    retries: int = 8
    first_wait_s: float = 0.5
    timeout_s: float = 120.0


@dataclass(frozen=True)
class Target:
    """A model, where it is, and what it costs.

    base_url: URL with the API's version: https://api.openai.com/v1.
    options: further fields of each request, like temperature.
    prompt_price: price of a million tokens of prompts.
    completion_price: price of a million tokens of answers.
    """

    base_url: str
    model: str
    api_key: str = field(default="", repr=False)
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    prompt_price: float = 0.0
    completion_price: float = 0.0

    @property
    def address(self) -> str:
        """The URL without what a file should not hold: user, password, query."""
        parts = urlsplit(self.base_url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def cost(self, prompt_tokens: int | None, completion_tokens: int | None) -> float:
        """Return what tokens cost, in the currency of the prices; unknown counts cost nothing."""
        prompt = (prompt_tokens or 0) * self.prompt_price
        return (prompt + (completion_tokens or 0) * self.completion_price) / 1e6

    def most_cost(self, messages: Messages) -> float | None:
        """Return what an answer may cost at most; None if nothing caps its tokens.

        A token of a prompt takes a byte at least, besides some around every turn.
        """
        most = next((self.options[key] for key in CAPS if key in self.options), None)
        if not isinstance(most, int):
            return None
        num_bytes = len(json.dumps(list(messages), ensure_ascii=False).encode())
        return self.cost(num_bytes + TURN_TOKENS * (1 + len(messages)), most)


class Endpoint:
    """Asks one model with fixed request options.

    retries: kind of failure -> number of retries so far.
    """

    def __init__(self, target: Target, patience: Patience) -> None:
        """Open no connection yet; ``close`` closes those that questions open."""
        self.target = target
        self.retries: Counter[str] = Counter()
        self._patience = patience
        self._client = _open_client(target)
        self._jitter = random.Random()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def ask(self, messages: Messages) -> Answer:
        """Return the answer to a conversation.

        What may pass is asked again: rate limits, server errors, timeouts, lost connections,
        replies that cannot be read.

        Raises:
            Failure: the endpoint refused this conversation or all of them, or the retries are
                used up. ``Failure.remedy`` says which.
        """
        attempt = 0
        while True:
            try:
                return await self._attempt(messages)
            except Failure as failure:
                if failure.remedy is not Remedy.ASK_AGAIN:
                    raise
                if attempt == self._patience.retries:
                    failure.remedy = Remedy.NEXT_QUESTION
                    failure.args = (f"{failure}, after {attempt} retries",)
                    raise
                wait_s = self._wait_s(attempt, failure)
                attempt += 1
                self.retries[failure.kind] += 1
                logger.info("%s: retry %d in %.1f s", failure, attempt, wait_s)
            await asyncio.sleep(wait_s)

    async def _attempt(self, messages: Messages) -> Answer:
        # The annotation of the client wants a union of typed dicts for what is plain JSON here. A
        # stream is asked for in the body, unknown to the client, which so reads it to its end.
        plain: Any = messages
        request = self._client.chat.completions.with_raw_response.create(
            model=self.target.model, messages=plain, extra_body=dict(self.target.options)
        )
        try:
            reply = await asyncio.wait_for(request, self._patience.timeout_s)
        except (asyncio.TimeoutError, openai.APITimeoutError) as error:
            detail = f"no whole answer in {self._patience.timeout_s:g} s"
            raise Failure("timeout", detail, Remedy.ASK_AGAIN) from error
        except openai.APIStatusError as error:
            wait_s = _asked_wait_s(error.response.headers.get("retry-after", ""))
            content = self._without_key(error.response.content)
            raise status_failure(error.status_code, content, wait_s) from error
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, Failure):
                raise error.__cause__ from None
            detail = str(error.__cause__)
            raise Failure("connection lost or refused", detail, Remedy.ASK_AGAIN) from error
        return read_answer(reply.content)

    def _without_key(self, body: bytes) -> bytes:
        """Return a body that may be shown: some endpoints repeat the key that they refuse."""
        key = self.target.api_key.encode("utf-8")
        return body.replace(key, b"(the key)") if key else body

    def _wait_s(self, attempt: int, failure: Failure) -> float:
        """Return the wait before the next attempt: doubled each time, and never all at once."""
        doubled = min(LONGEST_WAIT_S, self._patience.first_wait_s * 2.0**attempt)
        return max(doubled * self._jitter.uniform(0.75, 1.0), failure.wait_s)


class _BoundedClient(openai.DefaultAsyncHttpxClient):
    """Reads no more of a reply, unpacked, than any answer has: some are made to fill the memory."""

    async def send(self, request: Any, **options: Any) -> Any:
        """Return the reply, read to its end."""
        options["stream"] = True
        reply = await super().send(request, **options)
        body = bytearray()
        try:
            async for part in reply.aiter_bytes():
                body += part
                if len(body) > MOST_REPLY_BYTES:
                    detail = f"more than {MOST_REPLY_BYTES:,} bytes"
                    raise Failure("the reply is too large", detail, Remedy.NEXT_QUESTION)
        finally:
            await reply.aclose()
        headers = [(k, v) for k, v in reply.headers.multi_items() if k.lower() not in OF_THE_WIRE]
        return type(reply)(
            reply.status_code, headers=headers, content=bytes(body), request=reply.request
        )


def _open_client(target: Target) -> openai.AsyncOpenAI:
    """Return the official client, without retries of its own so that all of them are counted.

    A server on this machine is reached directly, whatever proxy the environment names.
    """
    is_local = urlsplit(target.base_url).hostname in LOOPBACK_HOSTS
    return openai.AsyncOpenAI(
        base_url=target.base_url,
        api_key=target.api_key or "none",
        timeout=None,  # Patience.timeout_s holds for the whole of an attempt
        max_retries=0,
        http_client=_BoundedClient(trust_env=not is_local),
    )


def _asked_wait_s(retry_after: str) -> float:
    """Return the seconds of a Retry-After header, at most a minute; 0 without usable ones."""
    try:
        asked = float(retry_after or 0.0)
    except ValueError:  # a date, which few endpoints send: our own wait is long enough
        return 0.0
    return min(max(asked, 0.0), LONGEST_WAIT_S) if math.isfinite(asked) else 0.0
