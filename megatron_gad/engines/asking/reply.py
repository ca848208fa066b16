"""The body of a chat completion, whole or streamed, read once into an Answer."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, ValidationError

from megatron_gad.engines.asking.failure import Failure, Remedy, raise_reported_error, readable

MOST_TOKENS = 10**9  # more is no count of the tokens of one answer
NAME_CHARACTERS = 200
# A line of a stream of events; no line of JSON can begin so.
EVENT = re.compile(rb"^data:[ \t]*(.*?)\r?$", re.MULTILINE)
END = b"[DONE]"
TEXT_PARTS = ("text", "output_text")
REASONING_PARTS = ("thinking", "reasoning")


@dataclass(frozen=True)
class Answer:
    """What a model answered, and what its endpoint says about that.

    text: the answer; empty if there is none.
    reasoning: the thoughts before it, if the endpoint shows them.
    finish_reason: as the endpoint names it, like "stop" or "length"; empty if it does not.
    model: name of the model that answered, empty if the endpoint does not say.
    reply_id: the endpoint's own name of this reply, empty if it has none.
    prompt_tokens: None if the endpoint does not say.
    completion_tokens: None if the endpoint does not say.
    """

    text: str
    reasoning: str = ""
    finish_reason: str = ""
    model: str = ""
    reply_id: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def read_answer(body: bytes) -> Answer:
    """Read the body of a reply with status 200: one JSON object, or a stream of them.

    Raises:
        Failure: the body is no answer, or reports an error.
    """
    events = [event for event in EVENT.findall(body) if event.strip()]
    documents = [_json(event) for event in events if event.strip() != END]
    if not events:
        documents = [_json(body)]
    for document in documents:
        raise_reported_error(document)
    answer = _combined([_piece(document) for document in documents], is_stream=bool(events))
    if events and not answer.finish_reason and events[-1].strip() != END:
        raise Failure("the stream ended early", "", Remedy.ASK_AGAIN)
    if answer.finish_reason == "error":
        raise Failure("finish_reason error", "", Remedy.ASK_AGAIN)
    return answer


def _name(value: Any) -> str:
    return readable(value)[:NAME_CHARACTERS] if isinstance(value, str) else ""


def _side_text(value: Any) -> str:
    return readable(value) if isinstance(value, str) else ""


def _thinking(value: Any) -> str:
    """Return the text of thoughts, which are a string or a list of parts again."""
    thoughts = cast(list[Any], value) if isinstance(value, list) else [{"text": value}]
    return "".join(_side_text(_fields(thought).get("text")) for thought in thoughts)


def _count(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_TOKENS
    return value if is_count else None


def _fields(value: Any) -> Any:
    return cast(Any, value) if isinstance(value, dict) else {}


# What is not the answer itself never makes an answer unusable: unusable values count as missing.
Name = Annotated[str, BeforeValidator(_name)]
SideText = Annotated[str, BeforeValidator(_side_text)]
Thinking = Annotated[str, BeforeValidator(_thinking)]
Count = Annotated[int | None, BeforeValidator(_count)]


class _Part(BaseModel):
    type: Name = ""
    text: str = ""
    thinking: Thinking = ""


class _Message(BaseModel):
    content: str | list[_Part] | None = None
    reasoning_content: SideText = ""
    reasoning: SideText = ""
    tool_calls: Any = None


class _Choice(BaseModel):
    message: _Message | None = Field(None, validation_alias=AliasChoices("message", "delta"))
    finish_reason: Name = ""
    error: Any = None


class _Usage(BaseModel):
    prompt_tokens: Count = None
    completion_tokens: Count = None


class _Piece(BaseModel):
    """A whole completion, or one event of a streamed one."""

    id: Name = ""
    model: Name = ""
    choices: list[_Choice] | None = None
    usage: Annotated[_Usage, BeforeValidator(_fields)] = _Usage()


def _json(encoded: bytes) -> Any:
    try:
        return json.loads(encoded.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        beginning = encoded[:100].decode("utf-8", "replace")
        raise Failure(
            "unreadable reply", f"{type(error).__name__}, {beginning!r}", Remedy.ASK_AGAIN
        ) from error


def _piece(document: Any) -> _Piece:
    try:
        return _Piece.model_validate(document)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"])) or "the whole"
        expected, _, _ = problem["msg"].partition(" or instance of ")
        raise _no_completion(f"{place}: {expected}") from error


def _combined(pieces: Sequence[_Piece], is_stream: bool) -> Answer:
    """Put the pieces of one reply together; of several choices the first counts."""
    choices = [piece.choices[0] for piece in pieces if piece.choices]
    messages = [choice.message for choice in choices if choice.message is not None]
    if not choices or (not messages and not is_stream):
        raise _no_completion("it has no choices" if not choices else "its message is null")
    for choice in choices:
        raise_reported_error({"error": choice.error, "choices": []})
    if any(message.tool_calls for message in messages):
        raise Failure("the answer calls a tool", "only text is kept", Remedy.NEXT_QUESTION)
    parts = [part for message in messages for part in _parts(message)]
    thoughts = [message.reasoning_content or message.reasoning for message in messages]
    thoughts += [part.thinking or part.text for part in parts if part.type in REASONING_PARTS]
    usages = [piece.usage for piece in pieces if piece.usage != _Usage()]
    usage = usages[-1] if usages else _Usage()
    return Answer(
        text=_whole("".join(part.text for part in parts if part.type in TEXT_PARTS)),
        reasoning=readable("".join(thoughts)),
        finish_reason=_last([choice.finish_reason for choice in choices]),
        model=_last([piece.model for piece in pieces]),
        reply_id=_last([piece.id for piece in pieces]),
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
    )


def _parts(message: _Message) -> list[_Part]:
    """Return the parts of a message's content, of which a string is one."""
    if message.content is None or isinstance(message.content, str):
        return [_Part(type="text", text=message.content or "")]
    for part in message.content:
        if part.type not in (*TEXT_PARTS, *REASONING_PARTS):
            raise Failure(
                f"the answer has a part of type {part.type!r}",
                "only text is kept",
                Remedy.NEXT_QUESTION,
            )
    return message.content


def _whole(text: str) -> str:
    """Return a text with the halves of surrogate pairs joined, which events may hold apart."""
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise Failure(
            "the answer holds half of a surrogate pair", "", Remedy.NEXT_QUESTION
        ) from error


def _last(names: Sequence[str]) -> str:
    return next((name for name in reversed(names) if name), "")


def _no_completion(why: str) -> Failure:
    return Failure("the reply is no chat completion", why, Remedy.NEXT_QUESTION)
