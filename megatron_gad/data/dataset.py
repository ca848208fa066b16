"""Rows of (conversation, teacher response) as prompts of token ids; what is dropped is counted."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from megatron_gad.config.data import DataConfig
from megatron_gad.data.chat import ChatCodec
from megatron_gad.data.conversation import Messages, read_messages, read_response
from megatron_gad.data.hub import read_hub_rows
from megatron_gad.data.rows import Row, read_file_rows
from megatron_gad.types import Prompt

HUB = "hub:"
SHOWN_PROBLEMS = 5
# Rows that are tokenised in one call, which uses all cores; bounded in characters for memory.
CHUNK_ROWS = 512
CHUNK_CHARACTERS = 8_000_000
COUNTS: tuple[str, ...] = (
    "num_rows",
    "num_prompts",
    "num_dropped_long_prompt",
    "num_dropped_empty_prompt",
    "num_dropped_empty_response",
    "num_dropped_ends_with_assistant",
    "num_dropped_refused_by_template",
    "num_teacher_truncated",
)


@dataclass(frozen=True)
class LoadedPrompts:
    """The usable rows of a data set.

    prompts: in the order of the files; ``Prompt.index`` counts dropped rows too.
    counts: one number for each name in ``COUNTS``. ``num_rows`` is the sum of ``num_prompts`` and
        of the rows dropped for each reason; ``num_teacher_truncated`` of the prompts hold a
        response without an end token, because the cap cut it.
    """

    prompts: tuple[Prompt, ...]
    counts: dict[str, int]


@dataclass(frozen=True)
class _Candidate:
    """A row that was read and rendered, before tokenisation."""

    index: int
    messages: Messages
    teacher_text: str
    rendered: str


class _Problems:
    """Counts rows that cannot be read and keeps the first few messages."""

    def __init__(self) -> None:
        self.count = 0
        self._shown: list[str] = []

    def add(self, place: str, problem: str) -> None:
        self.count += 1
        if len(self._shown) < SHOWN_PROBLEMS:
            self._shown.append(f"{place}: {problem}")

    def raise_if_any(self, path: str) -> None:
        if self.count == 0:
            return
        rows = "1 row" if self.count == 1 else f"{self.count} rows"
        first = f" (the first {SHOWN_PROBLEMS} follow)" if self.count > SHOWN_PROBLEMS else ""
        lines = "\n  ".join(self._shown)
        raise ValueError(f"{path}: {rows} cannot be read{first}; correct or remove them\n  {lines}")


def load_prompts(config: DataConfig, codec: ChatCodec, path: str) -> LoadedPrompts:
    """Read, check and tokenise all rows of a data set.

    Blank responses, blank prompts, prompts over ``codec.max_prompt_tokens``, conversations that
    end with an assistant turn and those the template refuses are dropped and counted. Rows are
    streamed: what is held are the results and one chunk.

    path: as ``DataConfig.path``.
    Raises ValueError, once for all rows, when the data cannot be read as it stands, naming file,
    row and remedy, and when no row is left.
    """
    counts: dict[str, int] = dict.fromkeys(COUNTS, 0)
    problems = _Problems()
    prompts: list[Prompt] = []
    for chunk in _chunks(_candidates(config, codec, path, counts, problems)):
        if problems.count == 0:  # else the run ends anyway, once all problems are known
            prompts.extend(_tokenised(chunk, codec, counts))
    problems.raise_if_any(path)
    counts["num_prompts"] = len(prompts)
    if not prompts:
        found = ", ".join(f"{name} = {number}" for name, number in counts.items() if number)
        raise ValueError(
            f"{path} has no usable row ({found or 'it is empty'}); look at the columns "
            f"{config.prompt_column!r} and {config.teacher_column!r} and at "
            f"data.max_prompt_tokens = {codec.max_prompt_tokens}"
        )
    return LoadedPrompts(tuple(prompts), counts)


def _rows(config: DataConfig, path: str) -> Iterator[Row]:
    columns = (config.prompt_column, config.teacher_column)
    if not path:
        raise ValueError("data.path is empty; give a file, a folder or hub:NAME")
    if path.startswith(HUB):
        return read_hub_rows(path.removeprefix(HUB), columns)
    return read_file_rows(path, columns)


def _candidates(
    config: DataConfig,
    codec: ChatCodec,
    path: str,
    counts: dict[str, int],
    problems: _Problems,
) -> Iterator[_Candidate]:
    for index, row in enumerate(_rows(config, path)):
        counts["num_rows"] += 1
        if row.problem:
            problems.add(row.place, row.problem)
            continue
        try:
            messages = read_messages(row.values[config.prompt_column])
            teacher_text = read_response(row.values[config.teacher_column])
        except ValueError as error:
            problems.add(row.place, str(error))
            continue
        reason = _reason_to_drop(messages, teacher_text)
        if reason:
            counts[reason] += 1
            continue
        try:
            rendered = codec.render_prompt(messages)
        except ValueError:
            counts["num_dropped_refused_by_template"] += 1
            continue
        yield _Candidate(index, messages, teacher_text, rendered)


def _reason_to_drop(messages: Messages, teacher_text: str) -> str:
    """Return the name of the count that a row falls under before tokenisation, or ""."""
    if not messages or not messages[-1][1].strip():
        return "num_dropped_empty_prompt"
    if messages[-1][0] == "assistant":
        return "num_dropped_ends_with_assistant"
    if not teacher_text.strip():
        return "num_dropped_empty_response"
    return ""


def _chunks(candidates: Iterable[_Candidate]) -> Iterator[list[_Candidate]]:
    chunk: list[_Candidate] = []
    characters = 0
    for candidate in candidates:
        chunk.append(candidate)
        characters += len(candidate.rendered) + len(candidate.teacher_text)
        if len(chunk) == CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _tokenised(
    chunk: list[_Candidate], codec: ChatCodec, counts: dict[str, int]
) -> Iterator[Prompt]:
    prompt_ids = codec.encode_rendered([candidate.rendered for candidate in chunk])
    kept = [(row, ids) for row, ids in zip(chunk, prompt_ids, strict=True) if ids is not None]
    counts["num_dropped_long_prompt"] += len(chunk) - len(kept)
    responses = codec.encode_responses([row.teacher_text for row, _ in kept])
    for (row, ids), (teacher_ids, truncated) in zip(kept, responses, strict=True):
        counts["num_teacher_truncated"] += truncated
        yield Prompt(
            index=row.index,
            messages=row.messages,
            teacher_text=row.teacher_text,
            ids=ids,
            teacher_ids=teacher_ids,
            teacher_truncated=truncated,
        )
