"""Reasoning before an answer: kept or stripped, on both sides alike."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_gad.config.data import DataConfig, Reasoning
from megatron_gad.data.chat import ChatCodec
from megatron_gad.data.dataset import load_prompts
from megatron_gad.data.reasoning import (
    continue_prompt,
    join_reasoning,
    split_reasoning,
    tags_of,
)
from tests.tiny_tokenizer import make_tokenizer
from tests.unit.data.test_template import THINKING

GPT_OSS = "<|channel|>analysis<|message|>one<|end|><|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>\none\n</think>\n\ntwo", "<think>\none\n</think>", "two"),
        (" <think>one</think> two ", " <think>one</think>", "two "),
        ("one\n</think>\n\ntwo", "one\n</think>", "two"),  # the prompt wrote <think>
        ("<think>one", "<think>one", ""),  # cut before it came to an answer
        ("plain", "", "plain"),
        ("of <think> and </think> I know", "", "of <think> and </think> I know"),
        ("<think>a</think>b</think>c", "<think>a</think>", "b</think>c"),
        ("<thinking>one</thinking>\ntwo", "<thinking>one</thinking>", "two"),
        ("<reasoning>one</reasoning>two", "<reasoning>one</reasoning>", "two"),
        ("◁think▷one◁/think▷two", "◁think▷one◁/think▷", "two"),
        ("[THINK]one[/THINK]two", "[THINK]one[/THINK]", "two"),
        (GPT_OSS + "two", GPT_OSS, "two"),
        ("<thinking>one", "<thinking>one", ""),
        ("<thinking>a</think>b</thinking>c", "<thinking>a</think>b</thinking>", "c"),
        ("one</reasoning> two", "", "one</reasoning> two"),  # no prompt wrote that
    ],
)
def test_reasoning_ends_where_the_first_closing_tag_is(
    text: str, reasoning: str, answer: str
) -> None:
    assert split_reasoning(text) == (reasoning, answer)


def test_reasoning_beside_an_answer_is_written_before_it_once() -> None:
    joined = "<think>\none\n</think>\n\ntwo"
    assert join_reasoning(" one\n", "two") == joined
    assert join_reasoning("one", joined) == joined
    assert join_reasoning(" ", "two") == "two"


def test_kept_reasoning_goes_on_from_what_the_prompt_wrote() -> None:
    whole = "<think>\none\n</think>\n\ntwo"
    assert continue_prompt(whole, "none", "") == whole
    assert continue_prompt(whole, "open", "\n") == "one\n</think>\n\ntwo"
    assert continue_prompt(whole, "open", "") == "\none\n</think>\n\ntwo"
    headless = "one\n</think>\n\ntwo"
    assert continue_prompt(headless, "open", "\n") == headless
    assert continue_prompt(headless, "none", "") == whole
    for opening in ("none", "open", "closed"):
        assert continue_prompt("two", opening, "\n") == "two"
    with pytest.raises(ValueError, match=r"ends it before the response begins; set data\.reason"):
        continue_prompt(whole, "closed", "")


@pytest.mark.parametrize(
    "text", [GPT_OSS + "two", "<reasoning>\none</reasoning> two", "[THINK]one[/THINK]two"]
)
def test_kept_reasoning_gets_the_tags_that_the_student_writes(text: str) -> None:
    assert continue_prompt(text, "none", "") == "<think>\none\n</think>\n\ntwo"
    assert continue_prompt(text, "open", "\n") == "one\n</think>\n\ntwo"
    kimi = tags_of("{{ '◁think▷' }}{{ '◁/think▷' }}")
    assert continue_prompt(text, "open", "", kimi) == "\none\n◁/think▷\n\ntwo"
    assert continue_prompt("<thinking>never done", "none", "") == "<think>never done"
    assert tags_of("{{ messages }}") == ("<think>", "</think>")


def load(folder: Path, reasoning: Reasoning, rows: list[dict[str, Any]], **arguments: Any):
    """Return codec and prompts of rows that are asked the same."""
    tokenizer = make_tokenizer(folder)
    tokenizer.chat_template = THINKING
    tokenizer.save_pretrained(str(folder))
    config = DataConfig(
        max_prompt_tokens=99,
        max_response_tokens=99,
        reasoning=reasoning,
        chat_template_kwargs=arguments,
    )
    text = "".join(json.dumps({"content": "hi"} | row) + "\n" for row in rows)
    (folder / "a.jsonl").write_text(text)
    codec = ChatCodec.from_config(folder, config)
    return codec, load_prompts(config, codec, str(folder / "a.jsonl"))


ROWS = [
    {"teacher_response": "<think>\none\n</think>\n\ntwo"},
    {"teacher_response": "two", "reasoning_content": "one"},
    {"teacher_response": "two"},
    {"teacher_response": {"role": "assistant", "content": "two", "reasoning_content": "one"}},
]


def test_stripped_reasoning_is_trained_on_and_judged_on_neither_side(tmp_path: Path) -> None:
    codec, loaded = load(tmp_path, "strip", [*ROWS, {"teacher_response": "<think>one"}])
    plain = ChatCodec.from_folder(tmp_path, 99, 99).encode_response("two")[0]
    assert [prompt.teacher_ids for prompt in loaded.prompts] == [plain] * 4
    assert loaded.counts["num_dropped_empty_response"] == 1
    # A rollout of the same answer reads the same, whatever it thought.
    assert codec.encode_response("<think>three</think>\ntwo") == (plain, False)
    assert codec.encode_response("<think>never done", hit_cap=True) == ((), True)
    assert codec.encode_responses(["<think>a</think>two", "two"], [True, False]) == [
        (plain[:-1], True),
        (plain, False),
    ]


def test_kept_reasoning_is_part_of_the_response(tmp_path: Path) -> None:
    whole, answer = "<think>\none\n</think>\n\ntwo", "two"
    codec, loaded = load(tmp_path, "keep", ROWS)
    texts = [prompt.teacher_text for prompt in loaded.prompts]
    assert texts == [whole, whole, answer, whole]
    assert loaded.prompts[1].teacher_ids == codec.encode_response(whole)[0]
    assert codec.decode_response(codec.encode_response(whole)[0]) == whole


def test_kept_reasoning_goes_on_from_an_opened_block(tmp_path: Path) -> None:
    _, loaded = load(tmp_path, "keep", ROWS[:2], forced=True)
    assert [prompt.teacher_text for prompt in loaded.prompts] == ["one\n</think>\n\ntwo"] * 2


def test_reasoning_without_a_place_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"row 1: the teacher's response has reasoning, but"):
        load(tmp_path, "keep", ROWS, enable_thinking=False)
    _, loaded = load(tmp_path, "strip", ROWS, enable_thinking=False)
    assert len(loaded.prompts) == 4
    with pytest.raises(ValueError, match=r"^data\.reasoning = 'strip', but .* opens <think>"):
        load(tmp_path, "strip", ROWS, forced=True)
