"""Rows as conversations that the template has written: what cannot be used is counted and named."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from megatron_gad.config.data import DataConfig
from megatron_gad.data.chat import ChatCodec
from megatron_gad.data.conversation import KNOWN_ROLES, Answer, Messages
from megatron_gad.data.forms import Read, RowForm, find_form, missing_column, with_system
from megatron_gad.data.rows import Row

SHOWN_PROBLEMS = 5
COUNTS: tuple[str, ...] = (
    "num_rows",
    "num_prompts",
    "num_dropped_long_prompt",
    "num_dropped_empty_prompt",
    "num_dropped_empty_response",
    "num_dropped_failed_response",
    "num_dropped_tool_call_response",
    "num_dropped_ends_with_assistant",
    "num_dropped_refused_by_template",
    "num_teacher_truncated",
    "num_teacher_cut_at_source",
)


@dataclass(frozen=True)
class Candidate:
    """A row that was read and rendered, before tokenisation.

    was_cut: the teacher's text was cut where it comes from.
    rendered_for_scorer: by the template of a discriminator with a tokenizer of its own.
    columns: those of data.reward_columns.
    """

    index: int
    messages: Messages
    teacher_text: str
    rendered: str
    was_cut: bool
    rendered_for_scorer: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Problems:
    """Counts rows that cannot be read and keeps the first few messages."""

    def __init__(self) -> None:
        self.count = 0
        self._shown: list[str] = []

    def add(self, place: str, problem: str) -> None:
        """Count a row."""
        self.count += 1
        if len(self._shown) < SHOWN_PROBLEMS:
            self._shown.append(f"{place}: {problem}")

    def raise_if_any(self, path: str) -> None:
        """Raise the ValueError of all rows of a path that cannot be read."""
        if self.count == 0:
            return
        rows = "1 row" if self.count == 1 else f"{self.count} rows"
        first = f" (the first {SHOWN_PROBLEMS} follow)" if self.count > SHOWN_PROBLEMS else ""
        lines = "\n  ".join(self._shown)
        raise ValueError(f"{path}: {rows} cannot be read{first}; correct or remove them\n  {lines}")


@dataclass
class Tally:
    """What was found in a data set.

    counts: one number for each name in ``COUNTS``.
    forms: how rows are written -> how many. unread: columns that nothing is read from.
    num_with_several: rows that have several answers.
    roles: roles that chat templates do not know -> in how many turns.
    refusals: the template's words -> how many conversations it refused with them.
    failures: the endpoint's word for why an answer failed -> how many.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    problems: Problems = field(default_factory=Problems)
    forms: Counter[str] = field(default_factory=Counter[str])
    unread: dict[str, None] = field(default_factory=dict[str, None])
    num_with_several: int = 0
    roles: Counter[str] = field(default_factory=Counter[str])
    refusals: Counter[str] = field(default_factory=Counter[str])
    failures: Counter[str] = field(default_factory=Counter[str])


def read_candidates(
    rows: Iterable[Row],
    config: DataConfig,
    codec: ChatCodec,
    tally: Tally,
    scorer: ChatCodec | None = None,
) -> Iterator[Candidate]:
    """Yield what can be used of every row: each of its answers is one of its own.

    scorer: of a discriminator with a tokenizer of its own, whose template has to take the prompts.

    Raises ValueError for a file whose first row is in no known form.
    """
    forms: dict[str, RowForm] = {}
    index = 0
    for row in rows:
        if row.is_again and tally.problems.count:
            return  # all of them are known
        if row.problem:
            tally.problems.add(row.place, row.problem)
            continue
        if row.file not in forms:
            forms[row.file] = _form_of(row, config)
        try:
            read = _read(forms[row.file], row, config, tally)
            texts = [codec.teacher_text(each.reasoning, each.text) for each in read.answers]
            reasons = [_reason_to_drop(read, *each, codec, tally) for each in _pairs(read, texts)]
            is_usable = "" in reasons
            rendered = _render(read, codec, tally) if is_usable else None
            for_scorer = ""
            if scorer is not None and rendered is not None:
                for_scorer = _render(read, scorer, tally, "the discriminator's tokenizer: ")
        except ValueError as error:
            tally.problems.add(row.place, str(error))
            continue
        tally.num_with_several += len(read.answers) > 1
        for (answer, text), reason in zip(_pairs(read, texts), reasons, strict=True):
            index += 1
            tally.counts["num_rows"] += 1
            if reason or rendered is None or for_scorer is None:
                tally.counts[reason or "num_dropped_refused_by_template"] += 1
                continue
            was_cut = answer.ending == "cut"
            columns = {name: row.values.get(name) for name in config.reward_columns}
            yield Candidate(index - 1, read.messages, text, rendered, was_cut, for_scorer, columns)


def _pairs(read: Read, texts: list[str]) -> list[tuple[Answer, str]]:
    """Return the answers with what is trained on of them; an empty one if there is none."""
    return [*zip(read.answers, texts, strict=True)] or [(Answer(""), "")]


def _form_of(row: Row, config: DataConfig) -> RowForm:
    try:
        return find_form(row.columns, row.values, config)
    except ValueError as error:
        raise ValueError(
            f"{row.place} {error}. Set data.prompt_column and data.teacher_column to columns it has"
        ) from error


def _read(form: RowForm, row: Row, config: DataConfig, tally: Tally) -> Read:
    problem = missing_column([*row.columns], (*form.columns, *config.reward_columns))
    if problem:
        raise ValueError(problem)
    read = form.read(row.values)
    tally.forms[form.describe(row.values)] += 1
    known = {*form.columns, *form.further, *config.reward_columns}
    tally.roles.update(x["role"] for x in read.messages if x["role"] not in KNOWN_ROLES)
    tally.unread |= dict.fromkeys(name for name in row.columns if name not in known)
    return replace(read, messages=with_system(read.messages, config.system_prompt))


def _reason_to_drop(read: Read, answer: Answer, text: str, codec: ChatCodec, tally: Tally) -> str:
    """Return the name of the count that an answer falls under before tokenisation, or ""."""
    messages = read.messages
    if not messages or not (messages[-1]["content"].strip() or messages[-1].get("tool_calls")):
        return "num_dropped_empty_prompt"
    if messages[-1]["role"] == "assistant":
        return "num_dropped_ends_with_assistant"
    if answer.ending == "failed":
        tally.failures[answer.finish_reason] += 1
        return "num_dropped_failed_response"
    if answer.has_calls:
        return "num_dropped_tool_call_response"
    return "" if codec.visible(text).strip() else "num_dropped_empty_response"


def _render(read: Read, codec: ChatCodec, tally: Tally, whose: str = "") -> str | None:
    """Return the prompt as the template writes it; None if it refuses the conversation.

    whose: begins what is said of it.

    Raises ValueError if the template leaves a part of it out.
    """
    try:
        rendered = codec.render_prompt(read.messages, read.tools)
    except ValueError as error:
        tally.refusals[f"{whose}{error}"] += 1
        return None
    loss = codec.template.find_loss(read.messages, read.tools)
    if loss:
        raise ValueError(f"{whose}{loss}")
    return rendered
