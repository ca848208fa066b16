"""Rows of (conversation, teacher response) as prompts of token ids; what is dropped is counted."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_gad.config.data import DataConfig
from megatron_gad.data.chat import ChatCodec
from megatron_gad.data.forms import wanted_columns
from megatron_gad.data.hub import read_hub_rows
from megatron_gad.data.marks import find_marks
from megatron_gad.data.reading import Candidate, Tally, read_candidates
from megatron_gad.data.report import data_notes, data_warnings
from megatron_gad.data.rows import Row, read_file_rows
from megatron_gad.data.stored import StoredPrompts
from megatron_gad.types import Prompt

HUB = "hub:"
# Rows that are tokenised in one call, which uses all cores; bounded in characters for memory.
CHUNK_ROWS = 512
CHUNK_CHARACTERS = 8_000_000


@dataclass(frozen=True)
class LoadedPrompts:
    """The usable rows of a data set.

    prompts: in the order of the files; ``Prompt.index`` counts dropped rows too. A row of several
        answers is as many rows.
    counts: one number for each name in ``COUNTS``. ``num_rows`` is the sum of ``num_prompts`` and
        of the rows dropped for each reason; ``num_teacher_truncated`` of the prompts hold a
        response without an end token: the cap cut it, or, ``num_teacher_cut_at_source`` of them,
        the teacher's endpoint did.
    notes: how the rows were read. warnings: what is wrong with some of them.
    """

    prompts: Sequence[Prompt]
    counts: dict[str, int]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def file(self) -> Path | None:
        """The file that the prompts are mapped from; None if they are in memory."""
        return self.prompts.path if isinstance(self.prompts, StoredPrompts) else None


def load_prompts(
    config: DataConfig,
    codec: ChatCodec,
    path: str,
    held_out: bool = False,
    keep: Callable[[Iterator[Prompt]], Sequence[Prompt]] = tuple,
    scorer: ChatCodec | None = None,
) -> LoadedPrompts:
    """Read, check and tokenise all rows of a data set.

    Blank responses, those that failed or call tools, blank prompts, prompts over
    ``codec.max_prompt_tokens``, conversations that end with an assistant turn and those the
    template refuses are dropped and counted. Rows are streamed: what is held is one
    chunk, besides what is kept.

    path: as ``DataConfig.path``.
    held_out: of a folder, read the files that are named so, which are otherwise left out.
    keep: takes all prompts, one by one, and returns them.
    scorer: of a discriminator with a tokenizer of its own, which has to take the prompts as well.

    Raises ValueError, once for all rows, when the data cannot be read as it stands, naming file,
    row and remedy, and when no row is left.
    """
    tally = Tally()
    candidates = read_candidates(_rows(config, path, held_out), config, codec, tally, scorer)
    prompts = keep(_prompts(candidates, codec, scorer, tally, path))
    tally.counts["num_prompts"] = len(prompts)
    if not prompts:
        raise ValueError(_no_usable_row(config, codec, path, tally))
    is_local = not path.startswith(HUB)
    weights = {} if held_out else config.weights
    notes = data_notes(tally, Path(path) if is_local else None, held_out, weights)
    warnings = data_warnings(tally, "" if held_out else path)
    warnings += find_marks(prompts, tally.counts, codec, scorer)
    return LoadedPrompts(prompts, tally.counts, notes, warnings)


def _prompts(
    rows: Iterable[Candidate],
    codec: ChatCodec,
    scorer: ChatCodec | None,
    tally: Tally,
    path: str,
) -> Iterator[Prompt]:
    for chunk in _chunks(rows):
        if tally.problems.count == 0:  # else the run ends anyway, once all problems are known
            yield from _tokenised(chunk, codec, scorer, tally.counts)
    tally.problems.raise_if_any(path)


def _no_usable_row(config: DataConfig, codec: ChatCodec, path: str, tally: Tally) -> str:
    found = ", ".join(f"{name} = {number}" for name, number in tally.counts.items() if number)
    words = "".join(f"; {refusal}" for refusal, _ in tally.refusals.most_common(1))
    return (
        f"{path} has no usable row ({found or 'it is empty'}{words}); look at the columns "
        f"{config.prompt_column!r} and {config.teacher_column!r} and at "
        f"data.max_prompt_tokens = {codec.max_prompt_tokens}"
    )


def _rows(config: DataConfig, path: str, held_out: bool) -> Iterator[Row]:
    if not path:
        raise ValueError("data.path is empty; give a file, a folder or hub:NAME")
    wanted, weights = wanted_columns(config), {} if held_out else config.weights
    if not path.startswith(HUB):
        return read_file_rows(path, wanted, held_out, weights)
    if weights:
        raise ValueError(f"data.weights are of the files of a folder; data.path = {path!r} is none")
    return read_hub_rows(path.removeprefix(HUB), wanted)


def _chunks(candidates: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    chunk: list[Candidate] = []
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
    chunk: list[Candidate],
    codec: ChatCodec,
    scorer: ChatCodec | None,
    counts: dict[str, int],
) -> Iterator[Prompt]:
    prompt_ids = codec.encode_rendered([row.rendered for row in chunk])
    scorer_ids: list[tuple[int, ...] | None] = [()] * len(chunk)
    if scorer is not None:
        scorer_ids = scorer.encode_rendered([row.rendered_for_scorer for row in chunk])
    kept = [
        (row, ids, own)
        for row, ids, own in zip(chunk, prompt_ids, scorer_ids, strict=True)
        if ids is not None and own is not None
    ]
    counts["num_dropped_long_prompt"] += len(chunk) - len(kept)
    responses = codec.encode_responses(
        [row.teacher_text for row, _, _ in kept], [row.was_cut for row, _, _ in kept]
    )
    for (row, ids, own), (teacher_ids, truncated) in zip(kept, responses, strict=True):
        counts["num_teacher_truncated"] += truncated
        counts["num_teacher_cut_at_source"] += row.was_cut
        yield Prompt(
            index=row.index,
            messages=row.messages,
            teacher_text=row.teacher_text,
            ids=ids,
            teacher_ids=teacher_ids,
            teacher_truncated=truncated,
            scorer_ids=own,
            columns=row.columns,
        )
