"""What stands out on the teacher's side is told with its share, an example and the remedy."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_gad.config.data import DataConfig
from megatron_gad.data.chat import ChatCodec
from megatron_gad.data.dataset import load_prompts
from megatron_gad.data.marks import SAMPLE_ROWS
from tests.tiny_tokenizer import make_tokenizer
from tests.unit.data.test_template import THINKING

CONFIG = DataConfig(max_prompt_tokens=60, max_response_tokens=30)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> ChatCodec:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return ChatCodec.from_config(folder, CONFIG)


def warnings(folder: Path, codec: ChatCodec, rows: list[dict[str, Any]]) -> tuple[str, ...]:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"content": "hi"} | row) + "\n" for row in rows))
    return load_prompts(CONFIG, codec, str(path)).warnings


def among(marked: dict[str, Any], count: int, total: int = 100) -> list[dict[str, Any]]:
    """Return rows of which the last ``count`` are marked."""
    plain = {"teacher_response": "hello, you"}
    return [plain] * (total - count) + [marked] * count


# A row, the most of 100 that are not worth a word, and the beginning and the end of the words.
MARKS: list[tuple[dict[str, Any], int, str, str]] = [
    (
        {"teacher_response": "the answer is right<|im_end|>"},
        3,
        "4 of 100 (4.0%) teacher responses looked at spell out control tokens,",
        "remove them from the data (data row 96: ' is right<|im_end|>')",
    ),
    (
        {"teacher_response": "[INST] hi [/INST] you"},  # of another model than the student
        3,
        "4 of 100 (4.0%) teacher responses looked at spell out control tokens,",
        "(data row 96: '[INST] hi [/INST] you')",
    ),
    *(
        (
            {"teacher_response": text},
            3,
            "4 of 100 (4.0%) teacher responses looked at begin with a header that the prompt wrote",
            f"remove it from the data (data row 96: {text!r})",
        )
        for text in ("Assistant: hello", "### Response:\nhello", "assistant\nhello")
    ),
    (
        {"teacher_response": "it holds that a &lt; b"},
        3,
        "4 of 100 (4.0%) teacher responses looked at hold characters as HTML writes them,",
        "unescape them (html.unescape) (data row 96: 's that a &lt; b')",
    ),
    (
        {"teacher_response": "one\\ntwo"},
        3,
        "4 of 100 (4.0%) teacher responses looked at write line breaks as a backslash and an n;",
        "make them line breaks (data row 96: 'one\\\\ntwo')",
    ),
    (
        {"teacher_response": "hello \n"},
        50,
        "51 of 100 (51.0%) teacher responses looked at begin or end with white space,",
        "if it is not the teacher's (data row 49: 'hello \\n')",
    ),
    (
        {"teacher_response": "turn right, " * 30},
        3,
        "4 of 100 (4.0%) teacher responses are cut, 0 where they come from and the others by",
        "raise the limit, or leave such rows out",
    ),
    (
        {"teacher_response": "hello", "finish_reason": "length"},
        3,
        "4 of 100 (4.0%) teacher responses are cut, 4 where they come from and the others by",
        "raise the limit, or leave such rows out",
    ),
    (
        {"teacher_response": ""},
        3,
        "4 of 100 (4.0%) rows are left out: they have no response;",
        "collect them again, or leave them out",
    ),
    (
        {"content": "word " * 99, "teacher_response": "hello"},
        3,
        "4 of 100 (4.0%) rows are left out: they have a prompt of more than data.max_prompt_tok",
        "raise it if there is memory for it",
    ),
]


@pytest.mark.parametrize(("marked", "allowed", "beginning", "end"), MARKS)
def test_a_mark_is_told_if_it_is_frequent(
    tmp_path: Path, codec: ChatCodec, marked: dict[str, Any], allowed: int, beginning: str, end: str
) -> None:
    assert warnings(tmp_path, codec, among(marked, allowed)) == ()
    (warning,) = warnings(tmp_path, codec, among(marked, allowed + 1))
    assert warning.startswith(beginning)
    assert warning.endswith(end)


def test_a_backslash_and_an_n_among_line_breaks_is_code(tmp_path: Path, codec: ChatCodec) -> None:
    code = {"teacher_response": "```python\nprint('one\\ntwo')\n```"}
    assert warnings(tmp_path, codec, among(code, 40)) == ()


def test_the_rows_looked_at_are_bounded_and_spread_over_all(
    tmp_path: Path, codec: ChatCodec
) -> None:
    half = [{"teacher_response": text} for text in ("hello", "</s>") for _ in range(SAMPLE_ROWS)]
    (warning,) = warnings(tmp_path, codec, half)
    assert warning.startswith("500 of 1,000 (50.0%) teacher responses looked at spell out control")
    assert warning.endswith("(data row 1000: '</s>')")


def test_reasoning_of_one_side_alone_is_told(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    tokenizer.chat_template = THINKING
    tokenizer.save_pretrained(str(tmp_path))

    def told(text: str, **arguments: Any) -> tuple[str, ...]:
        codec = ChatCodec.from_folder(tmp_path, 60, 30, arguments)
        return warnings(tmp_path, codec, [{"teacher_response": text}] * 9)

    (warning,) = told("hello")
    assert warning.startswith("the student's chat template lets it reason unless enable_thinking")
    assert warning.endswith("set data.chat_template_kwargs = {enable_thinking = false}")
    assert told("hello", enable_thinking=False) == ()
    assert told("<think>a</think>hello") == ()
    (warning,) = told("hello", enable_thinking=True, forced=True)
    assert warning.startswith("9 of 9 (100.0%) teacher responses looked at have no reasoning, but")
    assert told("<think>a</think>hello", enable_thinking=True, forced=True) == ()


def test_a_cap_far_from_what_the_teacher_writes_is_told(tmp_path: Path, codec: ChatCodec) -> None:
    size = len(codec.encode_response("hello, you")[0])
    rows = [{"content": "hi", "teacher_response": x} for x in ["hello, you"] * 96 + ["a " * 60] * 4]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def told(cap: int) -> tuple[str, ...]:
        config = DataConfig(max_response_tokens=cap)
        return load_prompts(config, ChatCodec.from_config(tmp_path, config), str(path)).warnings

    make_tokenizer(tmp_path)
    large = max(256, 8 * size + 1)
    (warning,) = told(large)
    assert warning.startswith(
        f"95% of the teacher responses looked at have {size} tokens at most, and "
        f"data.max_response_tokens = {large} lets a student that does not end go on for "
        f"{large // size} times as long"
    )
    assert told(255) == ()  # a small cap costs little
    rows[:6] = rows[-1:] * 6
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert told(large) == ()


def test_responses_that_the_discriminators_tokenizer_cuts_are_told(
    tmp_path: Path, codec: ChatCodec
) -> None:
    """One that knows bytes alone makes more tokens of a text than the student's."""
    make_tokenizer(tmp_path, "llama3", vocab_size=5 + 256)  # its special tokens and the bytes
    text = "turn right, " * 4
    size, cap = len(codec.encode_response(text)[0]), CONFIG.max_response_tokens
    assert size < cap < len(text.encode())
    scorer = ChatCodec.from_folder(tmp_path, 60, cap)
    path = tmp_path / "a.jsonl"

    def told(count: int) -> tuple[str, ...]:
        rows = among({"teacher_response": text}, count)
        path.write_text("".join(json.dumps({"content": "hi"} | row) + "\n" for row in rows))
        return load_prompts(CONFIG, codec, str(path), scorer=scorer).warnings

    assert told(3) == ()
    (warning,) = told(4)
    assert warning.startswith(
        "4 of 100 (4.0%) teacher responses looked at have more than data.max_response_tokens = "
        f"{cap} tokens of the discriminator's own tokenizer"
    )
