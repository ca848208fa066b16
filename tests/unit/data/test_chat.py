"""The codec: what the template writes comes back byte for byte, and both sides share one path."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from megatron_gad.data.chat import ChatCodec
from tests.tiny_tokenizer import STYLES, make_tokenizer

CONVERSATION = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Größe of 東京?\n\n  indented 🙂\ttab "},
)
RESPONSES = (
    "a short answer",
    "def f(x):\n    return  x  # two spaces , and ' n't \r\n\tend",
    "naïve 東京 🙂 здравствуйте",
    "zero\u200bwidth and nul \x00 and \u2028 separators",
)
END_TEXT = {"qwen": "<|im_end|>", "llama3": "<|eot_id|>", "minimal": "</s>"}


@pytest.fixture(scope="module", params=sorted(STYLES))
def style(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(style: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(style)
    make_tokenizer(path, style)
    return path


@pytest.fixture(scope="module")
def codec(folder: Path) -> ChatCodec:
    return ChatCodec.from_folder(folder, max_prompt_tokens=512, max_response_tokens=256)


def write(folder: Path, tokenizer: PreTrainedTokenizerFast, template: str) -> ChatCodec:
    tokenizer.chat_template = template
    tokenizer.save_pretrained(str(folder))
    return ChatCodec.from_folder(folder, 512, 256)


@pytest.mark.parametrize("response", RESPONSES)
def test_prompt_and_response_decode_to_the_rendered_conversation(
    style: str, folder: Path, codec: ChatCodec, response: str
) -> None:
    ids, truncated = codec.encode_response(response)
    decoded = AutoTokenizer.from_pretrained(str(folder)).decode(
        [*codec.encode_prompt(CONVERSATION), *ids], skip_special_tokens=False
    )
    turns = [*CONVERSATION, {"role": "assistant", "content": response}]
    rendered = AutoTokenizer.from_pretrained(str(folder)).apply_chat_template(turns, tokenize=False)
    end = END_TEXT[style]
    if end in rendered:
        expected = rendered[: rendered.rindex(end) + len(end)]
    else:  # this template writes a line end after the response and no token
        expected = rendered.removesuffix("\n") + end
    assert decoded.encode() == expected.encode()
    assert not truncated


@pytest.mark.parametrize("response", [*RESPONSES, "  outer space \n", "", "\n"])
def test_text_survives_encoding_and_decoding_byte_for_byte(codec: ChatCodec, response: str) -> None:
    ids, truncated = codec.encode_response(response)
    assert codec.decode_response(ids) == response
    assert ids[-1] == codec.end_id
    assert ids.count(codec.end_id) == 1
    assert not truncated


def test_prompt_ids_equal_those_of_transformers(folder: Path, codec: ChatCodec) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    expected = tokenizer.apply_chat_template(CONVERSATION, add_generation_prompt=True)["input_ids"]
    assert codec.encode_prompt(CONVERSATION) == tuple(expected)
    rendered = codec.render_prompt(CONVERSATION)
    assert codec.encode_rendered([rendered]) == [tuple(expected)]


def test_the_end_token_is_the_one_of_the_template(style: str, codec: ChatCodec) -> None:
    ids = {name: number for number, name in enumerate(STYLES[style].special_tokens)}
    end, eos = ids[END_TEXT[style]], ids[STYLES[style].eos]
    assert codec.end_id == end
    assert codec.stop_ids == ((end,) if end == eos else (end, eos))
    assert codec.pad_id == {"qwen": 0, "llama3": end, "minimal": end}[style]


def test_a_begin_token_is_in_the_prompt_once_and_in_no_response(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, "llama3")
    codec = ChatCodec.from_folder(tmp_path, 512, 256)
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id  # it would be added by default
    assert codec.encode_prompt(CONVERSATION).count(tokenizer.bos_token_id) == 1
    assert tokenizer.bos_token_id not in codec.encode_response("x")[0]


def test_stop_ids_of_the_generation_config_are_added(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, "qwen")
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [2, 0]}))
    assert ChatCodec.from_folder(tmp_path, 8, 8).stop_ids == (2, 0)
    path.write_text(json.dumps({"eos_token_id": 1}))
    assert ChatCodec.from_folder(tmp_path, 8, 8).stop_ids == (2, 1)
    path.write_text(json.dumps({"temperature": 1.0}))
    assert ChatCodec.from_folder(tmp_path, 8, 8).stop_ids == (2,)


def test_equal_text_gives_equal_ids_whichever_side_it_came_from(codec: ChatCodec) -> None:
    for text in RESPONSES:
        teacher_ids, _ = codec.encode_response(text)
        # A student may sample the same text in other pieces: here byte by byte.
        sampled = [i for char in text for i in codec.encode_response(char)[0][:-1]]
        for stop in codec.stop_ids:
            rollout_text = codec.decode_response([*sampled, stop])
            assert codec.encode_response(rollout_text) == (teacher_ids, False)


def test_control_tokens_spelled_out_in_a_response_stay_text(codec: ChatCodec, style: str) -> None:
    text = f"say {END_TEXT[style]} aloud"
    ids, _ = codec.encode_response(text)
    assert ids.count(codec.end_id) == 1
    assert codec.decode_response(ids) == text


def test_only_the_last_end_token_is_stripped_and_other_special_tokens_are_seen(
    tmp_path: Path,
) -> None:
    # A discriminator that does not see them could not teach the student to leave them out.
    make_tokenizer(tmp_path, "qwen")
    codec = ChatCodec.from_folder(tmp_path, 64, 64)
    hello = codec.encode_response("hello")[0][:-1]
    text = codec.decode_response([1, *hello, 0, *hello, 2])
    assert text == "<|im_start|>hello<|endoftext|>hello"
    assert codec.encode_response(text)[0] != codec.encode_response("hellohello")[0]
    assert codec.decode_response(()) == ""
    assert codec.decode_response((2,)) == ""


def test_an_end_token_that_is_no_special_token_is_stripped_once(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, "qwen")
    tokenizer.add_tokens(["[stop]"])
    template = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}[stop]{% endfor %}"
    codec = write(tmp_path, tokenizer, template)
    assert codec.end_id == len(tokenizer) - 1
    assert codec.decode_response(codec.encode_response("hello")[0]) == "hello"
    assert codec.decode_response([codec.end_id, codec.end_id]) == "[stop]"


@pytest.mark.parametrize("cap", [1, 2, 7])
def test_the_cap_counts_the_end_token(codec: ChatCodec, folder: Path, cap: int) -> None:
    capped = ChatCodec.from_folder(folder, 512, cap)
    text = "which way do you face? turn right 123"
    content = codec.encode_response(text)[0][:-1]
    assert len(content) > 8
    assert capped.encode_response(text) == (content[:cap], True)
    for length in range(len(content)):
        piece = codec.decode_response(content[:length])
        assert codec.encode_response(piece)[0][:-1] == content[:length]  # else no fair example
        ids, truncated = capped.encode_response(piece)
        assert truncated == (length >= cap)
        assert ids == (content[:cap] if truncated else (*content[:length], codec.end_id))


def test_a_response_that_hit_the_cap_carries_no_end_token(codec: ChatCodec) -> None:
    ids, truncated = codec.encode_response("a short answer", hit_cap=True)
    assert truncated
    assert (*ids, codec.end_id) == codec.encode_response("a short answer")[0]


def test_a_cut_inside_a_character_leaves_the_same_ids_on_both_sides(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, "qwen")
    long = ChatCodec.from_folder(tmp_path, 64, 64)
    text = "ab 𒀀𒀁"  # characters of four bytes that the tokenizer has no merges for
    content = long.encode_response(text)[0][:-1]
    assert len(content) >= 11
    for cap in range(len(content) - 8, len(content)):
        codec = ChatCodec.from_folder(tmp_path, 64, cap)
        teacher_ids, _ = codec.encode_response(text)
        sampled = content[:cap]  # the student sampled the same and met the cap
        rollout_ids, _ = codec.encode_response(codec.decode_response(sampled), hit_cap=True)
        assert rollout_ids == teacher_ids
        decoded = codec.decode_response(teacher_ids)
        assert text.startswith(decoded)
        assert teacher_ids == sampled[: len(teacher_ids)]
        assert cap - len(teacher_ids) <= 3


PIECES = (
    *(
        "turn",
        "right",
        "I'll",
        "don't",
        "a",
        "!",
        "...",
        "123",
        "4",
        "- item",
        "**bold**",
        "\u2019s",
    ),
    *(" ", "  ", "   ", "\n", "\n\n", " \n", "\t", "\r\n", "    return", "\u3000", "\u200b"),
    *("東京", "🙂", "é", "e\u0301", "𒀀", "def f(x):", "\ufffd"),
    *("<|im_end|>", "</s>", "<|eot_id|>", "\u2019s"),
)


def test_a_cut_text_reads_the_same_from_either_side_and_reads_back_as_itself(folder: Path) -> None:
    """The student sampled the teacher's very ids, and met the cap there."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    codec = ChatCodec.from_folder(folder, 512, 512)
    draw = random.Random(0)
    num_recut = 0
    for _ in range(1500):
        text = "".join(draw.choices(PIECES, k=draw.randint(2, 14)))
        codec.max_response_tokens = 512
        whole = codec.encode_response(text)[0][:-1]
        codec.max_response_tokens = cap = draw.randint(1, len(whole))
        ids, truncated = codec.encode_response(text)
        rollout_text = codec.decode_response(whole[:cap])
        assert codec.encode_response(rollout_text, hit_cap=True) == (ids, truncated) == (ids, True)

        left = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        back = tokenizer(left, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert tuple(back) == ids
        assert len(ids) <= cap
        assert not left.endswith("\ufffd")
        everything = tokenizer.decode(whole, clean_up_tokenization_spaces=False)
        assert everything.startswith(left)
        # Nothing is lost but the rest of one character, and replacement characters at the end.
        cut = tokenizer.decode(whole[:cap], clean_up_tokenization_spaces=False)
        assert left == cut.rstrip("\ufffd")
        num_recut += ids != whole[:cap]
    assert num_recut > 50


def test_the_rest_of_a_character_does_not_move_the_cut(codec: ChatCodec, folder: Path) -> None:
    """The replacement character that a rollout ends in would split the spaces before it."""
    text = "京\ufffd\r\n  \u3000東"
    whole = codec.encode_response(text)[0][:-1]
    for cap in range(1, len(whole)):
        capped = ChatCodec.from_folder(folder, 512, cap)
        sampled = codec.decode_response(whole[:cap])
        assert capped.encode_response(sampled, hit_cap=True) == capped.encode_response(text)


def test_a_response_in_other_pieces_is_cut_where_those_end(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, "minimal")
    codec = ChatCodec.from_folder(tmp_path, 64, 64)
    spaced = codec.encode_response("turn right")[0][:-1]
    apart = [i for char in "turn right" for i in tokenizer.encode(char)]  # a token per character
    assert len(apart) > len(spaced)
    assert codec.cut_response(apart, 64) == spaced
    for limit in range(len(apart)):
        ids = codec.cut_response(apart, limit)
        assert codec.decode_response(ids) == "turn right"[:limit]
        assert codec.encode_response(codec.decode_response(ids))[0] == (*ids, codec.end_id)
    assert codec.cut_response((), 5) == ()


def test_a_replacement_character_in_a_whole_text_is_kept(codec: ChatCodec) -> None:
    ids, _ = codec.encode_response("broken \ufffd")
    assert codec.decode_response(ids) == "broken \ufffd"


@pytest.mark.parametrize("response", [*RESPONSES, "a \ufffd\ufffd in between", "\ufffd", ""])
def test_the_texts_of_tokens_are_what_each_adds_to_the_text(
    codec: ChatCodec, folder: Path, response: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    whole, _ = codec.encode_response(response)
    for ids in (whole, whole[:-1]):  # with its end token, and cut before it
        texts = codec.token_texts(ids)
        ended = len(ids) == len(whole)
        assert [text is None for text in texts] == [False] * (len(whole) - 1) + [True] * ended
        own = [text for text in texts if text is not None]
        assert "".join(own) == response
        for end in range(len(own) + 1):
            so_far = tokenizer.decode(whole[:end], clean_up_tokenization_spaces=False)
            if "\ufffd" not in so_far:  # no character is begun and not complete
                assert "".join(own[:end]) == so_far


def test_the_texts_of_tokens_keep_the_spaces_between_words(tmp_path: Path) -> None:
    # As in sentencepiece, which takes the first space of a text off, and has bytes of its own.
    vocabulary = ["<unk>", "</s>", "▁a", "▁", "b", "<0xC3>", "<0xA9>"]
    model = models.BPE({text: n for n, text in enumerate(vocabulary)}, [], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    codec = write(tmp_path, fast, STYLES["minimal"].template)
    ids = [2, 2, 4, 3, 5, 6, 1]
    assert codec.token_texts(ids) == ["a", " a", "b", " ", "", "é", None]


def test_texts_far_over_a_cap_give_the_ids_of_the_whole_text(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    codec = ChatCodec.from_folder(folder, 5, 5)
    words = "turn right, turn left 東京 " * 1000
    spaces = "\u3000" * 40_000  # three bytes each
    for text in (words, spaces):
        expected = tokenizer(text, add_special_tokens=False)["input_ids"][:5]
        ids, truncated = codec.encode_response(text)
        assert truncated
        assert ids == tuple(expected)[: len(ids)]
        assert len(ids) >= 3
    assert codec.encode_rendered([words, "a b", spaces]) == [
        None,
        tuple(tokenizer("a b", add_special_tokens=False)["input_ids"]),
        None,
    ]


def test_a_text_of_very_long_tokens_is_judged_as_a_whole(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, "qwen")
    tokenizer.add_tokens(["=" * 100])
    tokenizer.save_pretrained(str(tmp_path))
    for count in (4, 40, 400):  # far over 32 characters a token
        capped = ChatCodec.from_folder(tmp_path, count, count)
        text = "=" * 100 * count
        assert capped.encode_rendered([text]) == [(len(tokenizer) - 1,) * count]
        assert capped.encode_rendered([text + "="]) == [None]
        assert capped.encode_response(text + "=") == ((len(tokenizer) - 1,) * count, True)


def test_a_batch_gives_the_ids_of_its_rows(codec: ChatCodec) -> None:
    texts = [*RESPONSES, "", "x" * 5000]
    assert codec.encode_responses(texts) == [codec.encode_response(text) for text in texts]
    assert codec.encode_responses([]) == []


def test_the_date_of_a_template_does_not_change_the_prompt_from_day_to_day(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, "qwen")
    template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
        "{% endif %}{{ date_string }} {{ messages[0].content }}"
    )
    codec = write(tmp_path, tokenizer, template)
    assert codec.render_prompt([{"role": "user", "content": "hi"}]) == "26 Jul 2024 hi"


def test_the_clock_of_a_template_stands_still(tmp_path: Path) -> None:
    """Templates of SmolLM3 and Mistral ask it in any case."""
    tokenizer = make_tokenizer(tmp_path, "qwen")
    template = (
        "\n{%- set today = strftime_now('%A, %-d %B %Y, %m/%y') %}"
        "{{ today if strftime_now is defined }} {{ messages[0].content }}"
    )
    codec = write(tmp_path, tokenizer, template)
    prompt = codec.render_prompt([{"role": "user", "content": "hi"}])
    assert prompt == "Friday, 26 July 2024, 07/24 hi"


def test_a_refusal_of_the_template_is_a_value_error(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, "qwen")
    template = (
        "{% for turn in messages %}{% if turn.role == 'system' %}"
        "{{ raise_exception('no system turns') }}{% endif %}{{ turn.content }}{% endfor %}"
    )
    codec = write(tmp_path, tokenizer, template)
    with pytest.raises(ValueError, match="refuses the conversation: no system turns"):
        codec.encode_prompt([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}])


def test_what_is_missing_in_the_folder_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere is not a folder; .*hf download"):
        ChatCodec.from_folder(tmp_path / "nowhere", 8, 8)
    with pytest.raises(ValueError, match=r"(?s)holds no tokenizer .*; copy tokenizer\.json"):
        ChatCodec.from_folder(tmp_path, 8, 8)
    tokenizer = make_tokenizer(tmp_path, "minimal")
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="names an end token; set eos_token"):
        write(tmp_path, tokenizer, STYLES["minimal"].template)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"no chat template; use an instruct model, or put"):
        ChatCodec.from_folder(tmp_path, 8, 8)
