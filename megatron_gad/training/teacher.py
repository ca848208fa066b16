"""A frozen language model in the student's layout, for the probabilities that it gives."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gad.config.further_stages import Divergence
from megatron_gad.models.build import build_language_model
from megatron_gad.models.families import load_hf_config
from megatron_gad.models.hf_weights import load_hf_weights
from megatron_gad.training.divergence import Taught
from megatron_gad.training.finite import are_finite
from megatron_gad.training.forward_backward import ForwardBackward
from megatron_gad.training.heads import Head, LanguageHead, StatesHead
from megatron_gad.training.offload import HostCopy, to_host
from megatron_gad.training.trainer import Trainer
from megatron_gad.training.vocab_parallel import vocab_shard
from megatron_gad.types import Batch


class Teacher:
    """The weights of a folder, without gradients and optimizer.

    They are on the device only inside a call. Of its output layer the student's turn borrows this
    rank's columns, whose copy is on the host too. It never computes in FP8.
    """

    def __init__(self, folder: str | Path, student: Trainer) -> None:
        """Load the folder's weights into the student's layout. All ranks call it."""
        self._parallel = student.parallel
        compute = replace(
            student.settings.compute,
            fp8_format=None,
            recompute_granularity=None,
        )
        self._settings = replace(student.settings, compute=compute)
        hf_config = load_hf_config(str(folder))
        with self._parallel.megatron_state.active():
            layout = self._settings.layout
            self._chunks: list[Any] = build_language_model(hf_config, layout, compute, False)
            for chunk in self._chunks:
                chunk.to(self._parallel.device).requires_grad_(False).eval()
            load_hf_weights(self._chunks, hf_config, folder)
            is_last = self._parallel.is_last_stage
            self._columns = self._columns_of(student) if is_last else None
        self._weights = HostCopy(self._tensors, self._parallel.device)
        self._weights.leave()

    def has_finite_weights(self) -> bool:
        """Return whether all weights are finite; all ranks call it and get the same answer."""
        with self._awake():
            return all(self._parallel.gather_over_world(are_finite(self._tensors())))

    def device_bytes(self) -> int:
        """Return the bytes that it takes on the device."""
        return self._weights.device_bytes

    def logprobs(self, batch: Batch) -> Tensor:
        """Return [B, T] float32 log-probabilities of response tokens at temperature 1, else 0."""
        head = LanguageHead(self._chunks[-1], self._settings.compute.logprob_chunk_size)
        return self._pass_forward(batch, head)

    def states(self, batch: Batch) -> tuple[Batch, Tensor]:
        """Return the batch with the numbers of its states, and these: [N, H], on the host.

        A rank that is not of the last pipeline stage has none.
        """
        head = StatesHead()
        numbers = self._pass_forward(batch, head)
        states = torch.cat(head.states) if head.states else torch.empty(0, 0)
        return replace(batch, teacher_states=numbers), states

    def taught(self, states: Tensor, kind: Divergence) -> Taught:
        """Return what the student's head compares with; brings the output layer to the device.

        states: from ``states``.
        """
        columns = states if self._columns is None else self._columns.to(self._parallel.device)
        return Taught(states, columns, kind)

    @torch.no_grad()
    def _pass_forward(self, batch: Batch, head: Head) -> Tensor:
        with self._parallel.megatron_state.active(), self._awake():
            run = ForwardBackward(self._chunks, head, self._settings, self._parallel)
            return run(batch, None, 1.0, forward_only=True).rows

    @contextmanager
    def _awake(self) -> Iterator[None]:
        self._weights.come_back()
        try:
            yield
        finally:
            self._weights.leave()

    def _tensors(self) -> Iterator[Tensor]:
        return (weight.detach() for chunk in self._chunks for weight in chunk.parameters())

    def _columns_of(self, student: Trainer) -> Tensor:
        """Return the output layer's rows for this rank's columns of the student's vocabulary.

        Models of a family may have vocabularies of different sizes, which padding for tensor
        parallelism shifts against each other.
        """
        own = self._chunks[-1].output_weight().detach()
        language_model: Any = student.modules_to_read()[-1]
        num_columns = len(language_model.output_weight())
        shard = vocab_shard(num_columns, language_model.real_vocab_size)
        if shard.group is None:
            return to_host(own[: shard.size])
        parts = [torch.empty_like(own) for _ in range(shard.group.size())]
        dist.all_gather(parts, own.contiguous(), group=shard.group)
        whole = torch.cat(parts)
        return to_host(whole[shard.start : shard.start + shard.size])
