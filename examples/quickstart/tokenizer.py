"""A word tokenizer made on the spot from a task's text.

A token is a word together with the space before it, or a punctuation mark, so that joining tokens
gives the text back. Text is split along the tokens themselves: whatever words a student samples,
their text becomes the same ids again.
"""

import re
from collections.abc import Iterable

from transformers import AddedToken, Qwen2Tokenizer

PAD, UNKNOWN, END, USER, ASSISTANT = "<|pad|>", "<|unk|>", "<|end|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, UNKNOWN, END, USER, ASSISTANT)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ('user', 'assistant') %}"
    "{{ raise_exception('this chat has only the roles user and assistant') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_WORD = re.compile(r" ?(?:[a-z]+|[^a-z\s])")


def make_tokenizer(texts: Iterable[str]) -> Qwen2Tokenizer:
    """Return a tokenizer whose vocabulary is the special tokens and the words of the texts.

    The texts consist of lower-case words and punctuation marks with at most one space between
    them. Other text has no ids and is dropped.
    """
    words = sorted({word for text in texts for word in _WORD.findall(text)})
    # AutoTokenizer rebuilds the tokenizer of every Qwen2 folder as byte-level BPE, whatever its
    # tokenizer.json says. Added tokens survive that, and match the longest word first.
    tokenizer = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(SPECIAL_TOKENS)},
        merges=[],
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        extra_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )
    added: list[str | AddedToken] = [AddedToken(word, normalized=False) for word in words]
    tokenizer.add_tokens(added)
    return tokenizer
