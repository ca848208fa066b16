"""Why an attempt to get an answer failed, and what to do about it."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from typing import Any, cast

SHOWN_CHARACTERS = 300
# No other question would fare better: wrong key, no credit left, unknown model or path.
STATUSES_OF_THE_ENDPOINT = (401, 402, 404)
CODES_OF_THE_ENDPOINT = ("insufficient_quota", "invalid_api_key", "model_not_found")
STATUSES_THAT_PASS = (408, 409, 425, 429)
# Parts of the codes that endpoints give to a question which stays refused.
CODES_OF_A_QUESTION = ("invalid", "content_filter", "policy", "moderation", "context_length")


class Remedy(Enum):
    """What may help after a failure: asking again, another question, or neither."""

    ASK_AGAIN = "ask again"
    NEXT_QUESTION = "next question"
    NONE = "none"


class Failure(Exception):
    """One attempt without an answer.

    kind: a few words, the same for failures of the same kind.
    wait_s: the wait that the endpoint asks for; 0 if it asks for none.
    """

    def __init__(self, kind: str, detail: str, remedy: Remedy, wait_s: float = 0.0) -> None:
        """Detail: what the endpoint says itself."""
        shown = readable(" ".join(detail.split()))[:SHOWN_CHARACTERS]
        super().__init__(f"{kind}: {shown}" if shown else kind)
        self.kind = kind
        self.remedy = remedy
        self.wait_s = wait_s


def status_failure(status: int, body: bytes, wait_s: float) -> Failure:
    """Return the failure of a reply with an HTTP status of 400 or more."""
    error: Mapping[str, Any] = {}
    with suppress(ValueError, RecursionError):
        error = _error_object(json.loads(body))
    message = _message(error) or body[: 4 * SHOWN_CHARACTERS].decode("utf-8", "replace")
    remedy = _remedy_of_status(status)
    if remedy is Remedy.ASK_AGAIN and _codes(error) & {*CODES_OF_THE_ENDPOINT}:
        remedy = Remedy.NONE
    return Failure(f"HTTP {status}", message, remedy, wait_s)


def raise_reported_error(reply: Any) -> None:
    """Raise the failure that a reply with status 200 reports; do nothing if it reports none.

    Gateways pass on in this way what the provider behind them answers.
    """
    error = _error_object(reply)
    if not error:
        return
    codes = _codes(error)
    statuses = [int(code) for code in codes if re.fullmatch("[45][0-9][0-9]", code)]
    if statuses:
        remedy = _remedy_of_status(statuses[0])
    elif codes & {*CODES_OF_THE_ENDPOINT}:
        remedy = Remedy.NONE
    elif any(part in code for code in codes for part in CODES_OF_A_QUESTION):
        remedy = Remedy.NEXT_QUESTION
    else:  # a provider's trouble, which most often passes
        remedy = Remedy.ASK_AGAIN
    kind = " ".join(["error", *map(str, statuses[:1]), "with status 200"])
    raise Failure(kind, _message(error) or _as_text(error), remedy)


def readable(text: str) -> str:
    """Return a text that UTF-8 can hold: half of a surrogate pair becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _error_object(reply: Any) -> Mapping[str, Any]:
    """Return what describes an error in a reply, empty if nothing does."""
    if not isinstance(reply, dict):
        return {}
    fields = cast(dict[str, Any], reply)
    error = fields.get("error")
    if isinstance(error, dict):
        return cast(dict[str, Any], error)
    if error:
        return {**fields, "message": error}
    # {"object": "error", "message": ...} and {"code": ..., "message": ...} are in use as well.
    is_error = fields.get("object") == "error" or ("message" in fields and "choices" not in fields)
    return fields if is_error else {}


def _message(error: Mapping[str, Any]) -> str:
    return _as_text(error.get("message") or error.get("detail") or "")


def _as_text(value: Any) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except RecursionError:
        return "(nested too deeply to show)"


def _codes(error: Mapping[str, Any]) -> set[str]:
    return {_as_text(error[name]).lower() for name in ("code", "type", "status") if error.get(name)}


def _remedy_of_status(status: int) -> Remedy:
    if status in STATUSES_OF_THE_ENDPOINT:
        return Remedy.NONE
    if status in STATUSES_THAT_PASS or status >= 500:
        return Remedy.ASK_AGAIN
    return Remedy.NEXT_QUESTION
