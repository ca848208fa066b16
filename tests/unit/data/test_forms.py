"""The forms of rows that users have: each is found, read and named."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_gad.config.data import DataConfig
from megatron_gad.data.chat import ChatCodec
from megatron_gad.data.dataset import LoadedPrompts, load_prompts
from tests.tiny_tokenizer import make_tokenizer
from tests.unit.data.test_template import CALL, CALLED, RESULT, THINKING, TOOL

CONFIG = DataConfig(
    max_prompt_tokens=400,
    max_response_tokens=99,
    chat_template_kwargs={"enable_thinking": False},
)
USER = {"role": "user", "content": "Sum 1 and 2."}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "3"}
PARTS = [{"type": "text", "text": "Sum 1"}, {"type": "text", "text": "and 2."}]


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> ChatCodec:
    """Return a codec whose template writes tools and calls."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = make_tokenizer(folder)
    tokenizer.chat_template = THINKING
    tokenizer.save_pretrained(str(folder))
    return ChatCodec.from_config(folder, CONFIG)


def load(
    folder: Path, codec: ChatCodec, rows: list[dict[str, Any]], config: DataConfig = CONFIG
) -> LoadedPrompts:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_prompts(config, codec, str(path))


SHAREGPT = {"from": "human", "value": "Sum 1 and 2."}
# The row, its conversation, and how it is said to be read.
FORMS: list[tuple[dict[str, Any], list[dict[str, Any]], str]] = [
    (
        {"content": [SYSTEM, USER], "teacher_response": "3"},
        [SYSTEM, USER],
        "'content' as messages, answered in 'teacher_response' (1)",
    ),
    (
        {"content": "Sum 1 and 2.", "teacher_response": "3", "id": 7},
        [USER],
        "'content' as plain text, answered in 'teacher_response' (1); not read: id",
    ),
    (
        {"content": json.dumps([SYSTEM, USER]), "teacher_response": "3"},
        [SYSTEM, USER],
        "'content' as messages as text, answered in 'teacher_response' (1)",
    ),
    (
        {"content": str([SYSTEM, USER]), "teacher_response": "3"},  # as pandas writes it to CSV
        [SYSTEM, USER],
        "'content' as messages as text, answered in 'teacher_response' (1)",
    ),
    (
        {"content": PARTS, "teacher_response": "3"},
        [{"role": "user", "content": "Sum 1\nand 2."}],
        "'content' as text parts, answered in 'teacher_response' (1)",
    ),
    (
        {"content": [{"role": "user", "content": PARTS}], "teacher_response": PARTS[1:]},
        [{"role": "user", "content": "Sum 1\nand 2."}],
        "'content' as messages, answered in 'teacher_response' (1)",
    ),
    (
        {"messages": [USER, ANSWER, USER, ANSWER]},
        [USER, ANSWER, USER],
        "'messages' as messages, ending with the answer (1)",
    ),
    (
        {"messages": [SYSTEM, USER], "teacher_response": "3"},
        [SYSTEM, USER],
        "'messages' as messages, answered in 'teacher_response' (1)",
    ),
    (
        {"content": [USER, ANSWER]},
        [USER],
        "'content' as messages, ending with the answer (1)",
    ),
    (
        {"conversations": [SHAREGPT, {"from": "gpt", "value": "3"}], "system": "Be brief."},
        [SYSTEM, USER],
        "'conversations' as ShareGPT turns, ending with the answer (1)",
    ),
    (
        {"instruction": "Sum", "input": "1 and 2.", "output": "3"},
        [{"role": "user", "content": "Sum\n\n1 and 2."}],
        "Alpaca's instruction and input, answered in 'output' (1)",
    ),
    (  # a conversation that repeats the prompt, as preference data has it
        {"content": "Sum 1 and 2.", "teacher_response": [USER, ANSWER]},
        [USER],
        "'content' as plain text, answered in 'teacher_response' (1)",
    ),
    (
        {"content": [SYSTEM, USER], "teacher_response": [SYSTEM, USER, ANSWER]},
        [SYSTEM, USER],
        "'content' as messages, answered in 'teacher_response' (1)",
    ),
    (
        {"messages": [{**USER, "role": "Human"}, {**ANSWER, "role": "ai"}]},
        [USER],
        "'messages' as messages, ending with the answer (1)",
    ),
    (
        {"instruction": "Sum", "context": "1 and 2.", "teacher_response": "3"},
        [{"role": "user", "content": "Sum\n\n1 and 2."}],
        "Alpaca's instruction and input, answered in 'teacher_response' (1)",
    ),
    (
        {"instruction": "Sum 1 and 2.", "input": "<noinput>", "output": "3"},
        [USER],
        "Alpaca's instruction and input, answered in 'output' (1)",
    ),
    (
        {"instruction": "Sum 1 and 2.", "input": "", "output": "x", "teacher_response": "3"},
        [USER],
        "Alpaca's instruction and input, answered in 'teacher_response' (1); not read: output",
    ),
]


@pytest.mark.parametrize(("row", "messages", "note"), FORMS)
def test_every_form_is_found_read_and_named(
    tmp_path: Path, codec: ChatCodec, row: dict[str, Any], messages: list[Any], note: str
) -> None:
    loaded = load(tmp_path, codec, [row])
    (prompt,) = loaded.prompts
    assert list(prompt.messages) == messages
    assert prompt.ids == codec.encode_prompt(messages)
    expected = "and 2." if row.get("teacher_response") == PARTS[1:] else "3"
    assert prompt.teacher_text == expected
    assert loaded.notes == (f"rows read: {note}",)
    assert loaded.warnings == ()


def test_texts_that_only_look_like_a_conversation_are_what_the_user_said(
    tmp_path: Path, codec: ChatCodec
) -> None:
    texts = ["[1, 2, 3]: sort this", "[1, 2, 3]", '[{"a": 1}]', "[]", "[{'role'", '{"role": 1}']
    loaded = load(tmp_path, codec, [{"content": x, "teacher_response": "3"} for x in texts])
    said = [prompt.messages for prompt in loaded.prompts]
    assert said == [({"role": "user", "content": text},) for text in texts]


def test_columns_that_are_set_win_over_what_would_be_found(
    tmp_path: Path, codec: ChatCodec
) -> None:
    row = {
        "messages": [{"role": "user", "content": "other"}, ANSWER],
        "question": "Sum 1 and 2.",
        "gold": "three",
    }
    config = DataConfig(prompt_column="question", teacher_column="gold")
    (prompt,) = load(tmp_path, codec, [row], config).prompts
    assert (prompt.messages, prompt.teacher_text) == ((USER,), "three")
    (prompt,) = load(tmp_path, codec, [row], DataConfig(prompt_column="messages")).prompts
    assert (prompt.messages[0]["content"], prompt.teacher_text) == ("other", "3")
    # A column that is named has to be there, whatever else could be read.
    with pytest.raises(ValueError, match="row 1 has no column 'asked'; it has 'messages', 'que"):
        load(tmp_path, codec, [row], DataConfig(prompt_column="asked"))
    with pytest.raises(ValueError, match="row 1 has no column 'answer'; it has 'messages', 'que"):
        load(tmp_path, codec, [row], DataConfig(teacher_column="answer"))


def test_a_system_prompt_is_for_conversations_without_one(tmp_path: Path, codec: ChatCodec) -> None:
    config = DataConfig(system_prompt="Answer in verse.")
    rows = [{"content": [SYSTEM, USER]}, {"content": [USER]}, {"content": "Sum 1 and 2."}]
    loaded = load(tmp_path, codec, [row | {"teacher_response": "3"} for row in rows], config)
    added = {"role": "system", "content": "Answer in verse."}
    assert [list(prompt.messages) for prompt in loaded.prompts] == [
        [SYSTEM, USER],
        [added, USER],
        [added, USER],
    ]


def test_tools_calls_and_their_results_reach_the_template_untouched(
    tmp_path: Path, codec: ChatCodec
) -> None:
    messages = [USER, CALLED, RESULT | {"tool_call_id": "a"}]
    rendered = codec.render_prompt(messages, [TOOL])
    ids = tuple(codec.encode_rendered([rendered])[0] or ())
    rows = [
        {"messages": [*messages, ANSWER], "tools": [TOOL]},
        {"messages": [*messages, ANSWER], "tools": json.dumps([TOOL])},
        {"messages": [USER, CALLED | {"content": None}, *messages[2:], ANSWER], "tools": [TOOL]},
    ]
    loaded = load(tmp_path, codec, rows)
    assert [prompt.ids for prompt in loaded.prompts] == [ids] * 3
    assert list(loaded.prompts[0].messages) == messages
    sharegpt = [
        SHAREGPT,
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "observation", "value": "4 C"},
        {"from": "gpt", "value": "3"},
    ]
    (prompt,) = load(tmp_path, codec, [{"conversations": sharegpt, "tools": [TOOL]}]).prompts
    assert prompt.ids == ids


def test_an_answer_that_only_calls_a_tool_is_counted_and_left_out(
    tmp_path: Path, codec: ChatCodec
) -> None:
    loaded = load(tmp_path, codec, [{"messages": [USER, CALLED]}, {"messages": [USER, ANSWER]}])
    assert [prompt.index for prompt in loaded.prompts] == [1]
    assert loaded.counts["num_dropped_tool_call_response"] == 1


def test_what_the_template_cannot_write_is_refused_with_the_row(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, "qwen")
    codec = ChatCodec.from_folder(tmp_path, 400, 99)
    rows = [
        {"messages": [USER, ANSWER]},
        {"messages": [USER, CALLED, RESULT, ANSWER]},
        {"messages": [USER, ANSWER], "tools": [TOOL]},
    ]
    with pytest.raises(ValueError) as caught:
        load(tmp_path, codec, rows)
    first, *problems = str(caught.value).splitlines()
    assert first.endswith("a.jsonl: 2 rows cannot be read; correct or remove them")
    assert "row 2: the chat template does not write 'tool_calls' of message 2; use" in problems[0]
    assert "row 3: the chat template does not write the row's tools; use" in problems[1]


def test_each_of_several_answers_is_a_row(tmp_path: Path, codec: ChatCodec) -> None:
    rows: list[dict[str, Any]] = [
        {"content": "a", "teacher_response": ["1", "", "2"]},
        {"content": "b", "teacher_response": "3"},
        {"content": "c", "teacher_response": ["4", "5"], "finish_reason": ["stop", "error"]},
        {"content": "d", "teacher_response": []},
        {"content": "e", "teacher_response": [ANSWER, {"role": "assistant", "content": "6"}]},
    ]
    loaded = load(tmp_path, codec, rows)
    found = [
        (each.index, each.messages[0]["content"], each.teacher_text) for each in loaded.prompts
    ]
    assert found == [
        *((0, "a", "1"), (2, "a", "2"), (3, "b", "3"), (4, "c", "4")),
        *((7, "e", "3"), (8, "e", "6")),
    ]
    counts = {name: count for name, count in loaded.counts.items() if count}
    assert counts == {
        "num_rows": 9,
        "num_prompts": 6,
        "num_dropped_empty_response": 2,
        "num_dropped_failed_response": 1,
    }
    (note,) = loaded.notes
    assert "of 3 rows each of several answers is a row of its own" in note
    assert "several" not in load(tmp_path, codec, rows[1:2]).notes[0]
    with pytest.raises(ValueError, match="row 1: 'finish_reason' has 1 entries for 2 answers"):
        load(tmp_path, codec, [rows[2] | {"finish_reason": ["stop"]}])


def test_an_answer_that_a_limit_cut_has_no_end_token(tmp_path: Path, codec: ChatCodec) -> None:
    rows = [
        {"content": "a", "teacher_response": "the answer", "finish_reason": reason}
        for reason in ("stop", "length", None, "MAX_TOKENS", "end_turn")
    ]
    rows.append({"content": "a", "teacher_response": "the answer", "stop_reason": "max_tokens"})
    message = {"role": "assistant", "content": "the answer", "finish_reason": "length"}
    rows.append({"content": "a", "teacher_response": message})
    loaded = load(tmp_path, codec, rows)
    whole = codec.encode_response("the answer")[0]
    assert whole[-1] == codec.end_id
    is_cut = [False, True, False, True, False, True, True]
    assert [prompt.teacher_truncated for prompt in loaded.prompts] == is_cut
    for prompt, cut in zip(loaded.prompts, is_cut, strict=True):
        assert prompt.teacher_ids == (whole[:-1] if cut else whole)
    assert loaded.counts["num_teacher_truncated"] == 4
    assert loaded.counts["num_teacher_cut_at_source"] == 4


def test_an_answer_that_failed_is_left_out_counted_and_named(
    tmp_path: Path, codec: ChatCodec
) -> None:
    reasons = ["content_filter", "stop", "error", "SAFETY", "error"]
    rows = [{"content": "a", "teacher_response": "I", "finish_reason": x} for x in reasons]
    loaded = load(tmp_path, codec, rows)
    assert [prompt.index for prompt in loaded.prompts] == [1]
    assert loaded.counts["num_dropped_failed_response"] == 4
    why = "says that the teacher did not end them"
    assert [warning for warning in loaded.warnings if "finish_reason" in warning] == [
        f"2 responses are left out: finish_reason 'error' {why}",
        f"1 responses are left out: finish_reason 'content_filter' {why}",
        f"1 responses are left out: finish_reason 'SAFETY' {why}",
    ]


def test_the_words_of_a_template_that_refuses_are_passed_on(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, "qwen")
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('No system here') }}{% endif %}"
        "{% for turn in messages %}{{ turn.content }}{% endfor %}"
    )
    tokenizer.save_pretrained(str(tmp_path))
    codec = ChatCodec.from_folder(tmp_path, 400, 99)
    refused = {"content": [SYSTEM, USER], "teacher_response": "3"}
    loaded = load(tmp_path, codec, [refused, {"content": [USER], "teacher_response": "3"}])
    assert loaded.counts["num_dropped_refused_by_template"] == 1
    assert loaded.warnings == (
        "1 conversations are left out: the chat template refuses the conversation: No system here",
    )
    with pytest.raises(ValueError, match=r"no usable row \(.*refused_by_template = 2; .*No system"):
        load(tmp_path, codec, [refused] * 2)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": "b"}]},
            "the prompt holds a part of type 'image_url'; models are trained on text alone",
        ),
        (
            {"content": [{"role": "user", "content": ["a"]}]},
            "message 1 holds a part of type 'str'; models are trained on text alone",
        ),
        (
            {"content": [{"from": "alien", "value": "a"}]},
            "message 1 is from 'alien'; known are human, user, system, gpt,",
        ),
        (
            {"content": [{"from": "function_call", "value": "weather()"}]},
            "'weather()' is not JSON (",
        ),
        ({"content": "a", "tools": {"name": "b"}}, "the tools have type dict; they have to be a l"),
        ({"content": "a", "tools": [1]}, "tool 1 has type int; it has to be an object that descri"),
        ({"content": "a", "tools": "weather"}, "'weather' is not JSON ("),
        (
            {"content": "Sum 1 and 3.", "teacher_response": [USER, ANSWER]},
            "the teacher's response is a conversation (user, assistant) that does not go on from",
        ),
        (
            {"content": "Sum 1 and 2.", "teacher_response": [USER]},
            "the teacher's response is a conversation (user) that does not go on from the prompt;",
        ),
        ({"content": "a", "teacher_response": [["b"]]}, "the teacher's response has type list; it"),
    ],
)
def test_a_cell_that_cannot_be_read_is_refused_with_the_reason(
    tmp_path: Path, codec: ChatCodec, row: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError) as caught:
        load(tmp_path, codec, [{"teacher_response": "3"} | row])
    assert f"row 1: {problem}" in str(caught.value)


def test_a_role_that_no_model_knows_is_told(tmp_path: Path, codec: ChatCodec) -> None:
    rows = [{"content": [{**USER, "role": role}], "teacher_response": "3"} for role in ("Usr", "x")]
    loaded = load(tmp_path, codec, [rows[0], rows[0], rows[1], {**rows[1], "content": [USER]}])
    assert loaded.warnings == (
        "2 turns have the role 'Usr', which models are not trained with; write system, developer, "
        "user, assistant, tool",
        "1 turns have the role 'x', which models are not trained with; write system, developer, "
        "user, assistant, tool",
    )
