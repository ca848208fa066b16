"""Answers of a model folder to a list of prompts, sampled or greedy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from megatron_gad.config.rollout import RolloutConfig, SGLangConfig
from megatron_gad.data.chat import ChatCodec
from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.build import build_engine
from megatron_gad.engines.sglang.site import ServerSite
from megatron_gad.models.families import load_hf_config
from megatron_gad.models.hf_headers import weight_files
from megatron_gad.models.tensor_names import DERIVED
from megatron_gad.types import Message, Prompt

OUTPUT_LAYER = "lm_head.weight"


@dataclass(frozen=True)
class Answered:
    """One answer. was_cut: it reached the limit of tokens before its end."""

    text: str
    was_cut: bool


class Answerer:
    """A model folder in an engine; use it as a context manager."""

    def __init__(
        self,
        hf_folder: str | Path,
        sampling: SamplingConfig,
        max_prompt_tokens: int = 2048,
        rollout: RolloutConfig | None = None,
        sglang: SGLangConfig | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        site: ServerSite | None = None,
    ) -> None:
        """Load the weights, into a server if the engine is one that starts here.

        hf_folder: Hugging Face folder with safetensors weights and tokenizer.
        sampling: temperature 0 is greedy; the stop ids are taken from the folder.
        rollout: names the engine, by default the embedded one in float32.
        chat_template_kwargs: further arguments of the chat template, as in data.
        site: where a server runs that starts here.
        """
        rollout = rollout or RolloutConfig()
        self._codec = ChatCodec.from_folder(
            hf_folder, max_prompt_tokens, sampling.max_new_tokens, chat_template_kwargs
        )
        self._sampling = replace(sampling, stop_ids=self._codec.stop_ids)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float32 if rollout.engine == "embedded" else torch.bfloat16
        self._engine = build_engine(rollout, hf_folder, device, dtype, sglang, site)
        self._engine.load_weights(folder_weights(hf_folder), version=0)

    def __enter__(self) -> "Answerer":
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def answer(
        self, conversations: Sequence[Sequence[Message]], numbers: Sequence[int] | None = None
    ) -> list[list[Answered]]:
        """Return ``sampling.num_samples`` answers per conversation, in their order.

        numbers: of the conversations among all; by default 0, 1, ... The draws depend on them, so
            that the answers do not depend on what is asked at once.

        Raises ValueError for a conversation longer than ``max_prompt_tokens``.
        """
        places = range(len(conversations)) if numbers is None else numbers
        prompts = [
            Prompt(number, tuple(messages), "", self._codec.encode_prompt(messages), ())
            for number, messages in zip(places, conversations, strict=True)
        ]
        limit = self._codec.max_prompt_tokens
        too_long = [prompt.index for prompt in prompts if len(prompt.ids) > limit]
        if too_long:
            raise ValueError(
                f"{len(too_long)} conversations are longer than {limit} tokens, the first is number"
                f" {too_long[0]}; raise max_prompt_tokens or leave them out"
            )
        return [
            [
                Answered(self._codec.decode_response(each.ids), each.finish_reason == "length")
                for each in group.rollouts
            ]
            for group in self._engine.generate(prompts, self._sampling)
        ]


def answer(
    hf_folder: str | Path,
    conversations: Sequence[Sequence[Message]],
    sampling: SamplingConfig,
    max_prompt_tokens: int = 2048,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return one response text per conversation, in their order, from the embedded engine.

    chat_template_kwargs: further arguments of the chat template, as in data.

    Raises ValueError for a conversation longer than ``max_prompt_tokens``.
    """
    with Answerer(
        hf_folder,
        replace(sampling, num_samples=1),
        max_prompt_tokens,
        chat_template_kwargs=chat_template_kwargs,
    ) as answerer:
        return [answers[0].text for answers in answerer.answer(conversations)]


def folder_weights(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Yield a folder's parameters by name; an output layer that is the embeddings once more, not.

    Raises ValueError: the folder holds no safetensors.
    """
    is_tied = bool(getattr(load_hf_config(folder), "tie_word_embeddings", False))
    for file in weight_files(Path(folder)):
        for name, tensor in load_file(file).items():
            if not name.endswith(DERIVED) and not (is_tied and name == OUTPUT_LAYER):
                yield name, tensor
