"""The chat template: its arguments, what it leaves out, and what it writes of reasoning."""

from pathlib import Path
from typing import Any

import pytest

from megatron_gad.data.template import ChatTemplate
from tests.tiny_tokenizer import QWEN_TEMPLATE, make_tokenizer

# Of the shape that Qwen3's has: a switch for reasoning, tools, calls and their results.
THINKING = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}"
    "{% for call in turn.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% elif forced | default(false) %}<think>\n{% endif %}{% endif %}"
)
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
ASKED = {"role": "user", "content": "How warm is it?"}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "4 C"}


def template(folder: Path, text: Any, **arguments: Any) -> ChatTemplate:
    tokenizer = make_tokenizer(folder)
    tokenizer.chat_template = text
    return ChatTemplate(tokenizer, arguments)


def test_arguments_reach_the_template(tmp_path: Path) -> None:
    header = "<|im_start|>user\nHow warm is it?<|im_end|>\n<|im_start|>assistant\n"
    assert template(tmp_path, THINKING).render([ASKED]) == header
    off = template(tmp_path, THINKING, enable_thinking=False)
    assert off.render([ASKED]) == header + "<think>\n\n</think>\n\n"
    assert template(tmp_path, THINKING, forced=True).render([ASKED]) == header + "<think>\n"


def test_of_several_templates_that_for_tools_is_for_tools(tmp_path: Path) -> None:
    clock = "{{ strftime_now('%d %b %Y') }} "
    texts = {"default": clock + QWEN_TEMPLATE, "tool_use": clock + THINKING}
    several = template(tmp_path, texts)
    assert "Be helpful." in several.render([ASKED])
    assert "Tools: [{" in several.render([ASKED], [TOOL])
    for tools in ([], [TOOL]):
        assert several.render([ASKED], tools).startswith("26 Jul 2024 <|im_start|>system")
    with pytest.raises(ValueError, match="templates named rag, and none named 'default'"):
        template(tmp_path, {"rag": QWEN_TEMPLATE})


def test_what_the_template_writes_of_reasoning_is_known(tmp_path: Path) -> None:
    assert template(tmp_path, THINKING).opening == "none"
    assert template(tmp_path, THINKING, enable_thinking=False).opening == "closed"
    forced = template(tmp_path, THINKING, forced=True)
    assert (forced.opening, forced.opening_space) == ("open", "\n")


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (
            THINKING,
            {"enable_thinkng": False},
            "data.chat_template_kwargs has 'enable_thinkng', which the student's chat template "
            "never reads; it reads enable_thinking, forced",
        ),
        (QWEN_TEMPLATE, {"enable_thinking": False}, "never reads; it reads none"),
        # A name that the template sets if it is not given, and one of transformers' own tags.
        (
            "{% if not deep is defined %}{% set deep = 1 %}{% endif %}{% generation %}{{ deep }}"
            "{% endgeneration %}{{ messages[0].content }}",
            {"x": 1},
            "never reads; it reads deep",
        ),
        (THINKING, {"messages": 1}, "has 'messages', which is set from elsewhere; leave it out"),
        (
            THINKING,
            {"enable_thinking": "false"},
            "data.chat_template_kwargs.enable_thinking = 'false' is text, which a template takes "
            "for true; write false in the file, or False as a flag",
        ),
    ],
)
def test_an_argument_without_effect_is_refused(
    tmp_path: Path, text: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        template(tmp_path, text, **arguments)
    assert str(caught.value).endswith(message)


def test_a_template_that_writes_all_loses_nothing(tmp_path: Path) -> None:
    conversation = [ASKED, CALLED, RESULT]
    writes_all = template(tmp_path, THINKING)
    assert writes_all.find_loss(conversation, [TOOL]) == ""
    assert writes_all.render(conversation, [TOOL]) == (
        '<|im_start|>system\nTools: [{"type": "function", "function": {"name": "weather", '
        '"parameters": {"type": "object"}}}]<|im_end|>\n'
        "<|im_start|>user\nHow warm is it?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}'
        "</tool_call><|im_end|>\n<|im_start|>tool\n4 C<|im_end|>\n<|im_start|>assistant\n"
    )


def test_what_a_template_leaves_out_is_named(tmp_path: Path) -> None:
    without_tools = template(tmp_path, QWEN_TEMPLATE)
    assert without_tools.find_loss([ASKED], [TOOL]) == (
        "the chat template does not write the row's tools; use a model that calls tools"
    )
    assert without_tools.find_loss([ASKED, CALLED, RESULT]).startswith(
        "the chat template does not write 'tool_calls' of message 2; use a model that calls tools"
    )
    assert without_tools.find_loss([ASKED]) == ""
    users_only = template(
        tmp_path,
        "{% for turn in messages if turn.role in ('user', 'assistant') %}{{ turn.content }}"
        "{% endfor %}",
    )
    system = {"role": "system", "content": "Be brief."}
    assert users_only.find_loss([system, ASKED]) == (
        "the chat template does not write message 1, of role 'system'; use a model whose template "
        "does, or leave such turns out"
    )
    # A blank turn loses nothing, and is no example for those that are not blank.
    assert users_only.find_loss([ASKED, {"role": "tool", "content": ""}]) == ""
    assert "message 2, of role 'tool'" in users_only.find_loss([ASKED, RESULT])


def test_a_type_error_in_the_template_is_a_refusal_of_the_conversation(tmp_path: Path) -> None:
    sums = template(tmp_path, "{% for turn in messages %}{{ 'x' + turn.content }}{% endfor %}")
    with pytest.raises(ValueError, match="refuses the conversation: can only concatenate str"):
        sums.render([{"role": "user", "content": 5}])
