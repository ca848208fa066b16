"""Answers of a model folder to a list of prompts, sampled or greedy."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from megatron_gad.data.chat import ChatCodec
from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.embedded import EmbeddedEngine
from megatron_gad.types import Message, Prompt


def answer(
    hf_folder: str | Path,
    conversations: Sequence[Sequence[Message]],
    sampling: SamplingConfig,
    max_prompt_tokens: int = 2048,
) -> list[str]:
    """Return one response text per conversation, in their order.

    hf_folder: Hugging Face folder with safetensors weights and tokenizer.
    conversations: the turns before the response.
    sampling: temperature 0 is greedy; stop ids are taken from the folder, one sample is drawn.

    Raises ValueError for a conversation longer than ``max_prompt_tokens``.
    """
    codec = ChatCodec.from_folder(hf_folder, max_prompt_tokens, sampling.max_new_tokens)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine = EmbeddedEngine(hf_folder, device, torch.float32)
    engine.load_weights(_folder_weights(Path(hf_folder)), version=0)
    prompts = [
        Prompt(index, tuple(messages), "", codec.encode_prompt(messages), ())
        for index, messages in enumerate(conversations)
    ]
    too_long = [p.index for p in prompts if len(p.ids) > max_prompt_tokens]
    if too_long:
        raise ValueError(
            f"{len(too_long)} conversations are longer than {max_prompt_tokens} tokens, the first "
            f"is number {too_long[0]}; raise max_prompt_tokens or leave them out"
        )
    drawn = engine.generate(prompts, replace(sampling, stop_ids=codec.stop_ids, num_samples=1))
    engine.close()
    return [codec.decode_response(group.rollouts[0].ids) for group in drawn]


def _folder_weights(folder: Path):
    for file in sorted(folder.glob("*.safetensors")):
        yield from load_file(file).items()
