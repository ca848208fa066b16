"""The embedded engine: the student's Hugging Face model in this process, on the same device."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from megatron_gad.config.rollout import RolloutConfig
from megatron_gad.engines.base import EngineWork, SamplingConfig, request_seed
from megatron_gad.engines.decoding import decode
from megatron_gad.engines.hf_module import (
    allocate_weights,
    build_module,
    copy_weights,
    holds_weights,
    named_weights,
    release_weights,
)
from megatron_gad.engines.scheduling import Request
from megatron_gad.types import Group, Prompt, Rollout


class EmbeddedEngine:
    """Samples with transformers, with nothing to install or to start; implements ``Engine``.

    A response depends on the weights, the prompt, the sampling and ``request_seed`` alone. The
    rows it is decoded with change logits by rounding only: in float32 next to no draw, while in
    bfloat16 a few tokens in a hundred may come out differently. The logprobs belong to the tokens
    as they were drawn, whatever the rows.
    """

    def __init__(
        self,
        hf_folder: str | Path,
        device: torch.device | str,
        dtype: torch.dtype,
        max_total_tokens: int = RolloutConfig.max_total_tokens,
    ) -> None:
        """Build the model without memory for its weights, which come from ``load_weights`` alone.

        hf_folder: only its config.json is read.
        dtype: of the weights and the computation; sampling is in float32 and above.
        max_total_tokens: whose keys and values are held at a time.
        """
        self._device = torch.device(device)
        self._max_total_tokens = max_total_tokens
        self._model = build_module(hf_folder, dtype)
        self._weights_version: int | None = None
        self._work = EngineWork()

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy all weights in, one tensor at a time. Nothing of older weights is kept anywhere.

        named_tensors: every parameter under its Hugging Face name, on any device and in any dtype;
            without lm_head.weight where the embeddings are tied.

        Raises ValueError if they are not exactly the model's; then no weights count as loaded.
        """
        self._weights_version = None
        if not holds_weights(self._model):
            allocate_weights(self._model, self._device)
        copy_weights(self._model, named_tensors)
        self._weights_version = version

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> list[Group]:
        """Sample ``sampling.num_samples`` responses for each prompt, in the order given.

        Raises RuntimeError without loaded weights, and ValueError for a prompt without tokens.
        """
        if self._weights_version is None:
            raise RuntimeError("the engine has no weights: call load_weights before generate")
        for prompt in prompts:
            if not prompt.ids:
                raise ValueError(f"prompt {prompt.index} has no token ids; drop it before sampling")
        requests = [
            Request(prompt.ids, request_seed(sampling.seed, prompt.index, sample))
            for prompt in prompts
            for sample in range(sampling.num_samples)
        ]
        begin = time.monotonic()
        responses, work = decode(self._model, requests, sampling, self._max_total_tokens)
        self._work += replace(work, seconds=time.monotonic() - begin)
        rollouts = [
            Rollout(r.ids, r.logprobs, r.finish_reason, self._weights_version) for r in responses
        ]
        size = sampling.num_samples
        return [
            Group(prompt, tuple(rollouts[number * size : (number + 1) * size]))
            for number, prompt in enumerate(prompts)
        ]

    def take_work(self) -> EngineWork:
        """Return what was done since the last call."""
        work, self._work = self._work, EngineWork()
        return work

    def held_weights(self) -> Iterable[tuple[str, Tensor]]:
        """Return the weights in use, without copies."""
        return named_weights(self._model).items()

    def sleep(self) -> None:
        """Free the weights' memory; there is none besides between two calls."""
        self._weights_version = None
        release_weights(self._model)

    def close(self) -> None:
        """Free the weights' memory; nothing was started."""
        self.sleep()
