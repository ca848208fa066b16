"""Text to token ids and back: one path for both sides, and the one end-token rule."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer

from megatron_gad.config.data import DataConfig, Reasoning
from megatron_gad.data.reasoning import continue_prompt, join_reasoning, split_reasoning
from megatron_gad.data.template import MARKER, ChatTemplate, template_variables
from megatron_gad.types import Message

REPLACEMENT = "\ufffd"  # what decoding makes of an incomplete character
HEAD_CHARACTERS = 32  # characters per token of a limit that are tokenised first
HEAD_GROWTH = 8  # how much more is tokenised where that was not enough
SETTLING_ROUNDS = 16  # of cutting, decoding and encoding again; one or two are the rule


class ChatCodec:
    """Turns conversations into prompt ids and responses into response ids.

    The teacher's text and the student's go through the same function, ``encode_response``, so that
    nothing but the text tells them apart. White space is kept byte for byte on both sides.

    max_prompt_tokens, max_response_tokens: caps in tokens; the second counts the end token.
    end_id: the token that the template puts after an assistant turn.
    stop_ids: every id that ends a response, ``end_id`` first.
    pad_id: the tokenizer's padding id, or ``end_id``; masks never depend on it.
    reasoning: what becomes of the reasoning that a response begins with, on both sides.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_prompt_tokens: int,
        max_response_tokens: int,
        further_stop_ids: Sequence[int] = (),
        chat_template_kwargs: Mapping[str, Any] | None = None,
        reasoning: Reasoning = "keep",
    ) -> None:
        self.max_prompt_tokens = max_prompt_tokens
        self.max_response_tokens = max_response_tokens
        self.reasoning = reasoning
        self.template = ChatTemplate(tokenizer, chat_template_kwargs)
        if reasoning == "strip" and self.template.opening == "open":
            raise ValueError(
                "data.reasoning = 'strip', but the student's chat template opens "
                f"{self.template.tags.open} where the response begins: an answer without reasoning "
                "would stand inside; use 'keep', or "
                "let the template close it, with data.chat_template_kwargs or in its file"
            )
        self._tokenizer = tokenizer
        # One int object per id: a data set of tuples then takes 8 bytes a token instead of 36.
        self._shared_ids = list(range(len(tokenizer)))
        self._longest_token = max(map(len, tokenizer.get_vocab()))
        self.end_id = self._find_end_id()
        stops = (self.end_id, tokenizer.eos_token_id, *further_stop_ids)
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(s for s in stops if s is not None))
        pad_id = tokenizer.pad_token_id
        self.pad_id: int = self.end_id if pad_id is None else pad_id

    @property
    def control_tokens(self) -> list[str]:
        """The texts of the tokenizer's special tokens."""
        return [str(each) for each in self._tokenizer.all_special_tokens]

    @classmethod
    def from_config(
        cls, hf_folder: str | Path, data: DataConfig, tokenizer: Any = None
    ) -> "ChatCodec":
        """Read a folder as ``from_folder`` does, for the data section of a run.

        tokenizer: the folder's, if it was loaded already.
        """
        return cls.from_folder(
            hf_folder,
            data.max_prompt_tokens,
            data.max_response_tokens,
            data.chat_template_kwargs,
            data.reasoning,
            tokenizer,
        )

    @classmethod
    def of_scorer(
        cls, tokenizer: Any, caps: tuple[int, int], chat_template_kwargs: Mapping[str, Any]
    ) -> "ChatCodec":
        """Return the codec of a discriminator that reads texts with its own tokenizer.

        Reasoning is dealt with before: the texts are those that the student's codec leaves.

        caps: of prompt and response, in tokens of its own.
        chat_template_kwargs: arguments of the student's template, of which its own takes those
            that it reads.
        """
        read = template_variables(tokenizer)
        arguments = {key: value for key, value in chat_template_kwargs.items() if key in read}
        return cls(tokenizer, *caps, (), arguments)

    @classmethod
    def from_folder(
        cls,
        hf_folder: str | Path,
        max_prompt_tokens: int,
        max_response_tokens: int,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        reasoning: Reasoning = "keep",
        tokenizer: Any = None,
    ) -> "ChatCodec":
        """Read tokenizer, chat template and generation_config.json of a Hugging Face folder.

        tokenizer: the folder's, if it was loaded already.

        Raises ValueError when there is no such folder, tokenizer, chat template or end token, and
        for arguments of the template that it does not read.
        """
        if not Path(hf_folder).is_dir():
            raise ValueError(
                f"{hf_folder} is not a folder; give a local Hugging Face folder (download one with "
                "`hf download NAME --local-dir FOLDER`)"
            )
        if tokenizer is None:
            tokenizer = load_tokenizer(hf_folder)
        stop_ids = generation_stop_ids(Path(hf_folder), len(tokenizer))
        caps = max_prompt_tokens, max_response_tokens
        return cls(tokenizer, *caps, stop_ids, chat_template_kwargs, reasoning)

    def render_prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> str:
        """Return the conversation as the template writes it, ending with the assistant header.

        Control tokens that the messages spell out are control tokens in the result, as they are
        where the model is served. Raises ValueError when the template refuses the conversation.
        """
        return self.template.render(messages, tools)

    def encode_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return the prompt's ids, ending with the assistant header, however long they are.

        Raises ValueError when the template refuses the conversation.
        """
        return self._shared(self._tokenise([self.render_prompt(messages)], split_special=False)[0])

    def encode_rendered(self, rendered: Sequence[str]) -> list[tuple[int, ...] | None]:
        """Return the ids of rendered prompts; None where they exceed ``max_prompt_tokens``."""
        limit = self.max_prompt_tokens
        rows = self._leading_ids(rendered, limit, split_special=False)
        return [self._shared(ids) if len(ids) <= limit else None for ids in rows]

    def encode_response(self, text: str, hit_cap: bool = False) -> tuple[tuple[int, ...], bool]:
        """Return a response's ids and whether it is truncated, that is, lacks its end token.

        The one path of teacher texts and of rollouts. Reasoning goes first if it is to be
        stripped. Control tokens spelled out in the text stay text. Ids are cut at
        ``max_response_tokens``, as ``cut_response`` does; the end token follows where it still
        fits.

        hit_cap: the text was cut, by the engine at the cap or where it comes from, so no end
            token was sampled and none is added.
        """
        return self.encode_responses([text], [hit_cap])[0]

    def teacher_text(self, reasoning: str, answer: str) -> str:
        """Return the teacher's response as it goes on from the prompt.

        reasoning: what stands beside the answer, which may begin with reasoning itself.

        Raises ValueError if reasoning is kept and the prompt leaves no room for it.
        """
        if self.reasoning == "strip":
            return answer
        template = self.template
        text = join_reasoning(reasoning, answer, template.tags)
        return continue_prompt(text, template.opening, template.opening_space, template.tags)

    def visible(self, text: str) -> str:
        """Return what of a response is trained on and judged."""
        return split_reasoning(text)[1] if self.reasoning == "strip" else text

    def cut_response(self, ids: Sequence[int], limit: int) -> tuple[int, ...]:
        """Return the beginning of a response, at most ``limit`` ids that read back as themselves.

        The ids of a whole text, cut, are not always those of the text that is left: a token may
        end inside a character, and what stands before the cut may merge otherwise. A rollout is
        decoded and encoded again, so the teacher's text has to be, too.
        """
        return self._shared(self._settled([list(ids)], limit)[0])

    def encode_responses(
        self, texts: Sequence[str], hit_cap: Sequence[bool] = ()
    ) -> list[tuple[tuple[int, ...], bool]]:
        """Return ``encode_response`` of every text, in one call of the tokenizer.

        hit_cap: of each text; none given: no text was cut before.
        """
        cap = self.max_response_tokens
        was_cut = hit_cap or [False] * len(texts)
        texts = [self.visible(text) for text in texts]
        # What a cut left of a character is no text, and may move the next cut.
        texts = [x.rstrip(REPLACEMENT) if c else x for x, c in zip(texts, was_cut, strict=True)]
        rows = self._leading_ids(texts, cap, split_special=True)
        cut = [number for number, ids in enumerate(rows) if was_cut[number] or len(ids) >= cap]
        settled = dict(zip(cut, self._settled([rows[number] for number in cut], cap), strict=True))
        return [
            (self._shared(settled.get(number, [*ids, self.end_id])), number in settled)
            for number, ids in enumerate(rows)
        ]

    def decode_response(self, ids: Sequence[int]) -> str:
        """Return the text of sampled ids without the one end token.

        Special tokens in between are spelled out: a response that holds one must not read like a
        clean one.
        """
        return self._decode(ids[:-1] if len(ids) > 0 and ids[-1] in self.stop_ids else ids)

    def token_texts(self, ids: Sequence[int]) -> list[str | None]:
        """Return what each id of a response adds to its text; of the end token it is None.

        Joined, they are the text. An id that ends inside a character adds nothing, and the one that
        completes it adds all of it.
        """
        texts: list[str | None] = []
        is_ended = len(ids) > 0 and ids[-1] == self.end_id
        own = ids[: len(ids) - is_ended]
        # Decoding goes on from the id before, since that decides about a space between the two.
        start = done = 0
        for end in range(1, len(own) + 1):
            text = self._decode(own[start:end])
            if text.endswith(REPLACEMENT) and end < len(own):
                texts.append("")
                continue
            texts.append(text[len(self._decode(own[start:done])) :])
            start, done = done, end
        return [*texts, None] if is_ended else texts

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _find_end_id(self) -> int:
        """Return the first added token that the template writes after an assistant turn."""
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARKER}]
        written = self.template.render(turns, add_generation_prompt=False)
        _, _, tail = written.rpartition(MARKER)
        added = self._tokenizer.added_tokens_decoder
        for token_id in self._tokenise([tail], split_special=False)[0]:
            if token_id in added and not added[token_id].content.isspace():
                return token_id
        if self._tokenizer.eos_token_id is None:
            raise ValueError(
                "neither the chat template nor the tokenizer names an end token; set eos_token in "
                "tokenizer_config.json"
            )
        return self._tokenizer.eos_token_id

    def _tokenise(self, texts: Sequence[str], split_special: bool) -> list[list[int]]:
        if not texts:
            return []  # the tokenizer cannot take an empty batch
        encoding = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=split_special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return encoding["input_ids"]

    def _leading_ids(
        self, texts: Sequence[str], limit: int, split_special: bool
    ) -> list[list[int]]:
        """Return the ids of every text; of a text far over ``limit`` tokens only the beginning.

        The beginning counts only when it holds twice the limit, besides what the pieces of one
        token that the cut broke can add; then the cut cannot reach the ids that are used.
        """
        enough = 2 * limit + self._longest_token
        rows = self._tokenise([text[: HEAD_CHARACTERS * enough] for text in texts], split_special)
        for number, text in enumerate(texts):
            size = HEAD_CHARACTERS * enough
            while size < len(text) and len(rows[number]) < enough:
                size *= HEAD_GROWTH
                rows[number] = self._tokenise([text[:size]], split_special)[0]
        return rows

    def _settled(self, rows: Sequence[list[int]], limit: int) -> list[list[int]]:
        """Cut every row, decode and encode it, until that changes nothing.

        A text that encodes to more than ``limit`` ids again is cut again. What a cut leaves of a
        character decodes to the replacement character, which goes. Every round makes a text
        shorter or the last, unless the tokenizer does not keep its own text; hence the bound.
        """
        settled = list(rows)
        moving = list(range(len(rows)))
        for _ in range(SETTLING_ROUNDS):
            if not moving:
                break
            texts = [self._decode(settled[n][:limit]).rstrip(REPLACEMENT) for n in moving]
            again = dict(zip(moving, self._tokenise(texts, split_special=True), strict=True))
            moving = [n for n, ids in again.items() if ids != settled[n] or len(ids) > limit]
            settled = [again.get(n, ids) for n, ids in enumerate(settled)]
        return [ids[:limit] for ids in settled]

    def _shared(self, ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(map(self._shared_ids.__getitem__, ids))


def load_tokenizer(hf_folder: str | Path, config: Any = None, needs_template: bool = True) -> Any:
    """Return the tokenizer of a Hugging Face folder; nothing is downloaded, no code of it is run.

    config: what its config.json says, if that was read already.

    Raises ValueError when there is none that transformers can read, or no chat template if one is
    needed.
    """
    try:
        tokenizer = _untyped(AutoTokenizer).from_pretrained(
            str(hf_folder), config=config, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{hf_folder} holds no tokenizer that transformers can read ({error}); copy "
            "tokenizer.json and tokenizer_config.json of the model into it"
        ) from error
    if needs_template and not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer in {hf_folder} has no chat template; use an instruct model, or put "
            "a chat_template.jinja into the folder"
        )
    return tokenizer


def _untyped(thing: Any) -> Any:
    """Return the argument; the types of transformers' tokenizers say less than their manual."""
    return thing


def generation_stop_ids(folder: Path, num_ids: int) -> tuple[int, ...]:
    """Return eos_token_id of generation_config.json: one, several, or none without the file.

    num_ids: how many the tokenizer has.

    Raises ValueError if it is no id of the tokenizer, or the file is no JSON object.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return ()
    again = "get the file again, or remove it: then the chat template's end token ends a response"
    try:
        stop: Any = json.loads(path.read_text(encoding="utf-8-sig")).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a JSON object ({error}); {again}") from error
    several = cast(list[Any], stop) if isinstance(stop, list) else [stop]
    stops = [] if stop is None else several
    wrong = [each for each in stops if type(each) is not int or not 0 <= each < num_ids]
    if wrong:
        raise ValueError(
            f"{path}: eos_token_id = {stop!r}, and {wrong[0]!r} is no id of the tokenizer, which "
            f"has 0 to {num_ids - 1}; {again}"
        )
    return tuple(stops)
