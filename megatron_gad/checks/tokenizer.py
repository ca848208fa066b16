"""What a folder's tokenizer makes of texts, and rules for it."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PretrainedConfig

from megatron_gad.config.data import DataConfig
from megatron_gad.data.chat import ChatCodec, load_tokenizer
from megatron_gad.models.hf_headers import is_pointer
from megatron_gad.types import Prompt

# One of these makes a tokenizer that transformers can load.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# Texts that two readings of a tokenizer are compared on, beside one made of its own tokens.
SAMPLE_TEXTS = (
    "The answer is 42, isn't it? (1,234.5)",
    "Größe, naïve café; 東京, привет 🙂",
    "def add(a, b):\n    return a + b\n\n\n# white  space\tcounts",
)
OWN_TOKENS = 64  # of the vocabulary, in the text that is made of them
CHECKED_ROWS = 16  # of a data set
SHOWN_IDS = 12
SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class FoundTokenizer:
    """The tokenizer of a folder.

    loaded: as transformers makes it, and every run uses it; None if there is none.
    stored: tokenizer.json by itself; None if there is none.
    problem: why it cannot be loaded; empty if there is none.
    """

    loaded: Any = None
    stored: Tokenizer | None = None
    problem: str = ""


def read_tokenizer(
    folder: Path, config: PretrainedConfig, needs_template: bool = True
) -> FoundTokenizer:
    """Load the tokenizer of a folder in both ways; config: what its config.json says."""
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not files or any(map(is_pointer, files)):
        return FoundTokenizer()  # another rule says so
    stored = None
    if files[0].name == "tokenizer.json":
        try:
            stored = Tokenizer.from_file(str(files[0]))
        except Exception as error:  # noqa: BLE001 - tokenizers raises nothing narrower
            return FoundTokenizer(
                problem=f"holds a tokenizer.json that cannot be read ({error}); download it again"
            )
    try:
        return FoundTokenizer(load_tokenizer(folder, config, needs_template), stored)
    except ValueError as error:
        return FoundTokenizer(problem=f"has no usable tokenizer: {error}")


def check_tokenizer(
    named: str, found: FoundTokenizer, num_rows: int | None, data: DataConfig
) -> Iterator[str]:
    """Yield what is wrong with the student's tokenizer.

    Args:
        named: what messages call the folder.
        found: its tokenizer.
        num_rows: of the embedding; None if not known.
        data: what the chat template is given.
    """
    if found.problem:
        yield f"{named} {found.problem}"
    if found.loaded is None:
        return
    yield from _row_problems(named, found, num_rows)
    lost = _lost_text(named, found)
    if lost:
        yield lost
        return
    try:
        ChatCodec(found.loaded, 1, 1, (), data.chat_template_kwargs, data.reasoning)
    except ValueError as error:
        yield f"{named}: {error}"


def check_scorer_tokenizer(
    named: str, found: FoundTokenizer, num_rows: int | None, data: DataConfig, difference: str
) -> Iterator[str]:
    """Yield what keeps a discriminator from reading texts with its own tokenizer.

    Args:
        named: what messages call the folder.
        found: its tokenizer.
        num_rows: of the embedding; None if not known.
        data: what the chat template is given.
        difference: how it reads otherwise than the student's.
    """
    yield from _row_problems(named, found, num_rows)
    lost = _lost_text(named, found)
    if lost:
        yield lost
        return
    try:
        if not found.loaded.chat_template:
            raise ValueError("it has no chat template to write the prompts with")
        ChatCodec.of_scorer(found.loaded, (1, 1), data.chat_template_kwargs)
    except ValueError as error:
        yield (
            f"{named}: {difference}; so it would read the texts by itself, but {error}: use an "
            "instruct model, put a chat_template.jinja into its folder, or leave "
            "discriminator.path out"
        )


def find_difference(student: FoundTokenizer, discriminator: FoundTokenizer) -> str:
    """Return how a discriminator's own tokenizer reads otherwise than the student's.

    Empty if it reads alike, or has no tokenizer: then it is given the student's ids.
    """
    if student.loaded is None or discriminator.loaded is None:
        return ""
    for text in _samples(student):
        ids = _ids(student, text)
        readings = [_ids(discriminator, text), _stored_ids(discriminator, text)]
        if ids not in readings:
            return (
                f"its tokenizer makes {_ids_shown(readings[0])} of the text {_shown(text)}, the "
                f"student's {_ids_shown(ids)}"
            )
    for token, number in _template_tokens(student.loaded).items():
        other = discriminator.loaded.get_vocab().get(token)
        if other != number:
            return f"{token!r} of the student's chat template is id {number} there and {other} here"
    return ""


def find_other_token(student: FoundTokenizer, teacher: FoundTokenizer) -> str:
    """Return a token of the student's vocabulary that is another one in the teacher's.

    Empty if there is none. One that only either of them has does not count.
    """
    if student.loaded is None or teacher.loaded is None:
        return ""
    ours, theirs = student.loaded.get_vocab(), teacher.loaded.get_vocab()
    tokens = {number: token for token, number in theirs.items()}
    for token, number in sorted(ours.items(), key=lambda item: item[1]):
        if theirs.get(token, number) != number or tokens.get(number, token) != token:
            return f"id {number} is {token!r} for the student and {tokens.get(number)!r} for it"
    return ""


def highest_id(found: FoundTokenizer) -> tuple[str, int]:
    """Return the last token of a tokenizer that was loaded, and its id."""
    return max(found.loaded.get_vocab().items(), key=lambda item: item[1])


def _row_problems(named: str, found: FoundTokenizer, num_rows: int | None) -> Iterator[str]:
    """Yield a message if the tokenizer has ids that the embedding has no row for."""
    token, highest = highest_id(found)
    if num_rows is not None and highest >= num_rows:
        yield (
            f"{named}: the tokenizer has ids up to {highest} ({token!r}), the embedding only "
            f"{num_rows} rows (vocab_size in config.json); resize the embedding "
            "(model.resize_token_embeddings(len(tokenizer))) and save the model again, or take "
            "the added tokens out"
        )


def _lost_text(named: str, found: FoundTokenizer) -> str:
    """Return the first text that transformers loses and tokenizer.json keeps; empty if none."""
    text = next((text for text in _samples(found) if _is_lost(found, text)), None)
    if text is None:
        return ""
    ids = _ids(found, text)
    return (
        f"{named}: transformers reads the folder's tokenizer as {type(found.loaded).__name__}, "
        f"which makes {_ids_shown(ids)} of the text {_shown(text)} and gives back "
        f"{_shown(_text(found, ids))}; tokenizer.json by itself makes "
        f"{_ids_shown(_stored_ids(found, text))} of it and gives it back: take the tokenizer "
        "of a model of this model_type"
    )


def check_texts(codec: ChatCodec, prompts: Sequence[Prompt]) -> Iterator[str]:
    """Yield the first response of a data set's first rows that the student's ids do not spell.

    White space, case and forms of Unicode are the tokenizer's business: many change them. A
    response whose reasoning is stripped comes back without its beginning.
    """
    for prompt in prompts[:CHECKED_ROWS]:
        text, back = (
            _bare(each) for each in (prompt.teacher_text, codec.decode_response(prompt.teacher_ids))
        )
        if text and not prompt.teacher_truncated and not (back and text.endswith(back)):
            ids = prompt.teacher_ids
            yield (
                f"row {prompt.index}: the response {_shown(prompt.teacher_text)} becomes "
                f"{_ids_shown(ids)}, which reads {_shown(codec.decode_response(ids))}; the "
                "student's tokenizer does not know this text: use a model whose tokenizer does, or "
                "other data"
            )
            return


def describe_reading(found: FoundTokenizer) -> str:
    """Return what differs between tokenizer.json and what transformers makes of it, if anything."""
    for text in _samples(found):
        stored, ids = _stored_ids(found, text), _ids(found, text)
        if stored is not None and stored != ids:
            start = next(n for n, pair in enumerate(zip_longest(ids, stored)) if len({*pair}) > 1)
            return (
                f"transformers reads {_shown(text)} with {_ids_shown(ids[start:])} at token "
                f"{start + 1}, and tokenizer.json by itself with {_ids_shown(stored[start:])}: a "
                "server that goes by the file gives the student other ids than it is trained on"
            )
    return ""


def _samples(found: FoundTokenizer) -> Iterator[str]:
    """Yield the texts to compare readings on; the last is made of the tokenizer's own tokens."""
    yield from SAMPLE_TEXTS
    stored = found.stored
    if stored is not None:
        ids = sorted(set(stored.get_vocab().values()) - stored.get_added_tokens_decoder().keys())
        some = ids[:: max(1, len(ids) // OWN_TOKENS)]
        # Tokens can be parts of characters.
        yield stored.decode(some).replace("\ufffd", "")


def _is_lost(found: FoundTokenizer, text: str) -> bool:
    """Return whether a text comes back from tokenizer.json alone, and from transformers not."""
    if found.stored is None:
        return False
    ids = _stored_ids(found, text)
    is_kept = found.stored.decode(ids or []) == text
    return is_kept and _text(found, _ids(found, text)) != text


def _ids(found: FoundTokenizer, text: str) -> list[int]:
    """Return the ids of a text without special tokens, as transformers makes them."""
    return found.loaded(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _stored_ids(found: FoundTokenizer, text: str) -> list[int] | None:
    """Return the ids that tokenizer.json alone makes of a text; None without one."""
    if found.stored is None:
        return None
    return found.stored.encode(text, add_special_tokens=False).ids


def _text(found: FoundTokenizer, ids: Sequence[int]) -> str:
    return found.loaded.decode(list(ids), clean_up_tokenization_spaces=False)


def _template_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the added tokens that a chat template writes, with their ids."""
    template = str(tokenizer.chat_template)
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    return {token: number for token, number in added.items() if token in template}


def _bare(text: str) -> str:
    """Return a text without what tokenizers change on purpose."""
    kept = (each for each in unicodedata.normalize("NFKC", text) if not each.isspace())
    return "".join(x for x in kept if not unicodedata.category(x).startswith("C")).casefold()


def _shown(text: str) -> str:
    """Return the beginning of a text, quoted."""
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "...")


def _ids_shown(ids: Sequence[int] | None) -> str:
    """Return the first ids."""
    if not ids:
        return "no ids"
    more = ", ..." if len(ids) > SHOWN_IDS else ""
    return f"[{', '.join(map(str, ids[:SHOWN_IDS]))}{more}]"
