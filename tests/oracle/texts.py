"""The oracle's way from text to token ids, and what it is told of samples."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

BROKEN = "\ufffd"  # what decoding makes of a part of a character


@dataclass(frozen=True)
class Response:
    """What an engine sampled.

    logprobs: as the trainer gets them. drawn_logprobs: as the engine computed them; they differ
        only where a case puts an error between the two.
    is_cut: it ended at the cap, without an end token.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    drawn_logprobs: tuple[float, ...]
    is_cut: bool


@dataclass(frozen=True)
class Sampled:
    """The responses to one row of the data, and the prompt ids that they were sampled for."""

    row: int
    prompt_ids: tuple[int, ...]
    responses: tuple[Response, ...]


class Texts:
    """The data as text, and the one way from text to ids."""

    def __init__(self, student: Path, data: Path, cap: int) -> None:
        """cap: tokens of a response, the end token included."""
        self._tokenizer: Any = AutoTokenizer.from_pretrained(student)
        self.rows = [json.loads(line) for line in data.read_text().splitlines()]
        self.cap = cap
        whole = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        _, _, tail = self._tokenizer.apply_chat_template(whole, tokenize=False).rpartition("b")
        self.end = self._encode(tail, is_text=False)[0]
        named = [self.end, self._tokenizer.eos_token_id, *_stops_of_model(student)]
        self.stops = tuple(dict.fromkeys(named))  # any of them ends a response

    def prompt(self, row: int) -> list[int]:
        """Return the ids of a conversation, up to where the assistant begins to speak."""
        text = self._tokenizer.apply_chat_template(
            self.rows[row]["content"], tokenize=False, add_generation_prompt=True
        )
        return self._encode(text, is_text=False)

    def teacher(self, row: int) -> list[int]:
        """Return the ids of the teacher's response."""
        return self._response(self.rows[row]["teacher_response"], was_cut=False)[0]

    def read(self, group: Sampled) -> tuple[list[int], list[list[int]]]:
        """Return what the discriminator reads: of the teacher's response, and of those sampled.

        All that were cut are as long as the shortest of them, so that no length tells a side.
        """
        read = [self._response(self.rows[group.row]["teacher_response"], was_cut=False)]
        read += [self._response(self.text(each), each.is_cut) for each in group.responses]
        limit = min((len(ids) for ids, is_cut in read if is_cut), default=0)
        teacher, *students = [self._settled(ids, limit) if is_cut else ids for ids, is_cut in read]
        return teacher, students

    def text(self, response: Response) -> str:
        """Return a sampled response as text, without its end token."""
        return self.decode(response.ids if response.is_cut else response.ids[:-1])

    def _response(self, text: str, was_cut: bool) -> tuple[list[int], bool]:
        """Return the ids of a text, and whether it is cut, and so without an end token."""
        ids = self._encode(text.rstrip(BROKEN) if was_cut else text, is_text=True)
        if not was_cut and len(ids) < self.cap:
            return [*ids, self.end], False
        return self._settled(ids, self.cap), True

    def _settled(self, ids: list[int], limit: int) -> list[int]:
        """Cut, decode and encode until the ids stay: what is cut reads like a text that ended."""
        before, ids = None, ids[:limit]
        while ids != before:
            text = self.decode(ids).rstrip(BROKEN)
            before, ids = ids, self._encode(text, is_text=True)[:limit]
        return ids

    def _encode(self, text: str, is_text: bool) -> list[int]:
        """is_text: a control token that the text spells out is no control token."""
        return self._tokenizer(text, add_special_tokens=False, split_special_tokens=is_text)[
            "input_ids"
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, whichever they are."""
        return self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def _stops_of_model(folder: Path) -> list[int]:
    path = folder / "generation_config.json"
    stops = json.loads(path.read_text()).get("eos_token_id", []) if path.exists() else []
    return stops if isinstance(stops, list) else [stops]
