"""Small byte-level tokenizers with chat templates, trained on the spot for the tests."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The student answers the question of the user, and the teacher answers it too.",
    "Which way do you face? Turn right, turn left, turn back, so the answer is north.",
    "def add(a, b):\n    return a + b\n\n# white  space\tcounts\n",
    "Größe, naïve, 東京, здравствуйте, 🙂 and 123 or 4567.",
    "user: hello\nassistant: hello, how can I help you today?\nsystem: be brief",
]

QWEN_TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}"
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}<|start_header_id|>{{ turn.role }}<|end_header_id|>"
    "\n\n{{ turn.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MINIMAL_TEMPLATE = (
    "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True)
class Style:
    """What differs between the tokenizers: special tokens, their roles, the template."""

    special_tokens: tuple[str, ...]
    template: str
    eos: str
    pad: str | None = None
    bos: str | None = None


STYLES = {
    "qwen": Style(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        QWEN_TEMPLATE,
        eos="<|im_end|>",
        pad="<|endoftext|>",
    ),
    "llama3": Style(
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ),
        LLAMA3_TEMPLATE,
        eos="<|end_of_text|>",
        bos="<|begin_of_text|>",
    ),
    "minimal": Style(("</s>",), MINIMAL_TEMPLATE, eos="</s>", pad="</s>"),
}


def make_tokenizer(
    folder: str | Path, style: str = "qwen", vocab_size: int = 384
) -> PreTrainedTokenizerFast:
    """Write tokenizer and chat template into a folder (made if missing) and return the tokenizer.

    The special tokens have the first ids, in the order of ``STYLES``; then come the 256 bytes.

    Args:
        folder: a Hugging Face folder, beside whose model the files are put.
        style: "qwen" (end token = eos, its own padding token, NFC), "llama3" (the template ends a
            turn with a token that is not eos; a begin token; no padding token) or "minimal" (no
            token after an assistant turn, padding = eos).
        vocab_size: ids, all of them in use, special tokens included.
    """
    chosen = STYLES[style]
    tokenizer = Tokenizer(models.BPE())
    if style == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(chosen.special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if chosen.bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{chosen.bos} $A",
            special_tokens=[(chosen.bos, tokenizer.token_to_id(chosen.bos))],
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=chosen.eos,
        pad_token=chosen.pad,
        bos_token=chosen.bos,
        additional_special_tokens=list(chosen.special_tokens),
    )
    fast.chat_template = chosen.template
    assert len(fast) == vocab_size, (len(fast), vocab_size)
    fast.save_pretrained(str(folder))
    return fast
