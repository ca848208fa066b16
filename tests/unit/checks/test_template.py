"""What the dry run says of chat templates."""

from pathlib import Path

import pytest

from megatron_gad.checks.template import describe_template
from megatron_gad.data.chat import load_tokenizer
from megatron_gad.data.template import ChatTemplate
from tests.tiny_tokenizer import LLAMA3_TEMPLATE, QWEN_TEMPLATE, make_tokenizer

DATED = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday is "
    "{{ strftime_now('%d %B %Y') }}.<|eot_id|>"
) + LLAMA3_TEMPLATE.removeprefix("{{ bos_token }}")
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no rules') }}{% endif %}"
THINKS = LLAMA3_TEMPLATE.removeprefix("{{ bos_token }}").replace(
    "\n\n{% endif %}", "\n\nOPENING{% endif %}"
)
SILENT = QWEN_TEMPLATE.replace(
    "{% for turn in messages %}", "{% for turn in messages if turn.role != 'system' %}"
)


@pytest.mark.parametrize(
    ("style", "template", "said"),
    [
        (
            "qwen",
            QWEN_TEMPLATE,
            [
                "begins a conversation without a system turn with "
                r"'<|im_start|>system\nBe helpful.'",
                "takes a system turn",
                "does not write tools",
            ],
        ),
        ("llama3", LLAMA3_TEMPLATE, ["takes a system turn", "does not write tools"]),
        (
            "llama3",
            DATED,
            [
                "begins a conversation without a system turn with "
                r"'<|start_header_id|>system<|end_header_id|>\n\nToday is 26 July 2024.'",
                "writes a date, which is 26 Jul 2024 on every day",
                "takes a system turn",
                "does not write tools",
            ],
        ),
        (
            "llama3",
            REFUSING + LLAMA3_TEMPLATE,
            [
                "refuses a system turn: the chat template refuses the conversation: no rules",
                "does not write tools",
            ],
        ),
        (
            "qwen",
            SILENT,
            [
                "begins a conversation without a system turn with "
                r"'<|im_start|>system\nBe helpful.'",
                "does not write a system turn",
                "does not write tools",
            ],
        ),
        (
            "qwen",
            "{% if tools %}{{ tools[0].function.name }}{% endif %}"
            + THINKS.replace("OPENING", "<think>\n"),
            [
                "writes the beginning of reasoning (<think>) where a response begins",
                "takes a system turn",
                "writes tools",
            ],
        ),
        (
            "llama3",
            THINKS.replace("OPENING", "◁think▷◁/think▷"),
            [
                "writes an empty block of reasoning (◁think▷) where a response begins",
                "takes a system turn",
                "does not write tools",
            ],
        ),
    ],
)
def test_what_a_template_adds_and_leaves_out_is_told(
    tmp_path: Path, style: str, template: str, said: list[str]
) -> None:
    tokenizer = make_tokenizer(tmp_path, style)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    read = load_tokenizer(tmp_path)
    assert list(describe_template(ChatTemplate(read), read.bos_token or "")) == said
