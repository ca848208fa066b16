"""The one trainer: a Megatron model, its optimizer, and the forward-backward schedule.

It knows no algorithm. A loss gets what the model computed for a microbatch and returns a sum and a
count; the trainer divides by the count summed over microbatches and data ranks, so that splitting,
padding and the number of data ranks cannot change the gradient.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor
from transformers import PretrainedConfig

from megatron_gad.config.models import DiscriminatorConfig, StudentConfig
from megatron_gad.models.build import build_language_model, build_scorer
from megatron_gad.models.hf_weights import export_hf_weights, load_hf_weights
from megatron_gad.training.divergence import Taught
from megatron_gad.training.finite import are_finite
from megatron_gad.training.forward_backward import ForwardBackward, LossFunction, StepOutput
from megatron_gad.training.heads import Head, LanguageHead, ScoreHead, TokenValueHead
from megatron_gad.training.offload import TrainerMemory, to_host
from megatron_gad.training.optimizer import (
    Schedule,
    build_optimizer,
    clip_and_update,
    forget_moments,
    gradient_norm,
)
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.settings import TrainerSettings
from megatron_gad.types import Batch, PairBatch

P = ParamSpec("P")
R = TypeVar("R")


def in_own_layout(
    method: Callable[Concatenate["Trainer", P], R],
) -> Callable[Concatenate["Trainer", P], R]:
    """Run a trainer's method while its layout is the one that megatron.core sees."""

    @wraps(method)
    def run(self: "Trainer", *args: P.args, **kwargs: P.kwargs) -> R:
        with self.parallel.megatron_state.active():
            return method(self, *args, **kwargs)

    return run


class Trainer:
    """One model under any layout with its optimizer; made by one of two class methods."""

    def __init__(
        self,
        chunks: list[torch.nn.Module],
        hf_config: PretrainedConfig,
        head: Head,
        parallel: Parallel,
        lr: float,
        settings: TrainerSettings,
    ) -> None:
        self.hf_config = hf_config
        self.parallel = parallel
        self._modules: list[Any] = chunks
        self.settings = settings
        self._chunks: list[Any] = [self._wrap(chunk) for chunk in chunks]
        no_sync = [chunk.no_sync for chunk in self._chunks]
        # All chunks have one configuration; an interleaved schedule takes the functions of each.
        self._modules[0].config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
        self._optimizer = build_optimizer(
            self._chunks,
            settings.optimizer,
            lr,
            settings.compute,
            distributed=settings.layout.use_distributed_optimizer,
        )
        self._forward_backward = ForwardBackward(self._chunks, head, settings, parallel)
        self.memory = TrainerMemory(chunks, self._optimizer, parallel.device)
        self.begin_stage(lr, total_steps=1)

    @classmethod
    def language_model(
        cls,
        hf_config: PretrainedConfig,
        config: StudentConfig,
        parallel: Parallel,
        settings: TrainerSettings,
    ) -> "Trainer":
        """Build a language model of this shape; its weights are undefined until loaded."""
        with parallel.megatron_state.active():
            chunks: list[Any] = build_language_model(
                hf_config, settings.layout, settings.compute, returns_logits=False
            )
            head = LanguageHead(chunks[-1], settings.compute.logprob_chunk_size)
            return cls(chunks, hf_config, head, parallel, config.lr, settings)

    @classmethod
    def scorer(
        cls,
        hf_config: PretrainedConfig,
        config: DiscriminatorConfig,
        parallel: Parallel,
        settings: TrainerSettings,
    ) -> "Trainer":
        """Build the same network with a scalar head drawn from the run's seed."""
        head = ScoreHead(config.score)
        with parallel.megatron_state.active():
            chunks = build_scorer(
                hf_config, settings.layout, settings.compute, config.head_std, settings.seed
            )
            return cls(chunks, hf_config, head, parallel, config.lr, settings)

    def begin_stage(self, lr: float, total_steps: int, reset_optimizer: bool = False) -> None:
        """Start a learning-rate schedule; optionally forget the optimizer's moments."""
        if reset_optimizer:
            forget_moments(self._optimizer)
        self.schedule = Schedule(self._optimizer, self.settings.optimizer, lr, total_steps)

    @in_own_layout
    def train(
        self,
        batch: Batch | PairBatch,
        loss: LossFunction,
        temperature: float = 1.0,
        taught: Taught | None = None,
    ) -> StepOutput:
        """Take one optimizer step, or skip it if its loss, rows or gradient are not finite.

        A skipped step leaves weights, optimizer states and learning-rate schedule as they were.

        batch: this data rank's rows.
        loss: (LanguageOutput or ScorerOutput, microbatch) -> Loss.
        temperature: divides the logits of a language model.
        taught: gives the loss the divergence of a language model from its teacher.
        """
        self.wake()
        self.memory.note_change()
        for chunk in self._chunks:
            chunk.zero_grad_buffer()
        self._optimizer.zero_grad()
        output = self._forward_backward(batch, loss, temperature, False, taught)
        grad_norm = gradient_norm(self._optimizer)
        is_skipped = not self._is_finite_everywhere(output, grad_norm)
        if not is_skipped:
            self.schedule.step()
            clip_and_update(self._optimizer, grad_norm)
        taken = {
            "grad_norm": grad_norm,
            "lr": self.schedule.lr,
            "skipped_steps": float(is_skipped),
        }
        return replace(output, metrics={**output.metrics, **taken})

    @in_own_layout
    @torch.no_grad()
    def evaluate(self, batch: Batch | PairBatch, loss: LossFunction) -> StepOutput:
        """Compute a loss's metrics over all data ranks without learning from it."""
        return self._pass_forward(batch, loss, 1.0)

    @in_own_layout
    @torch.no_grad()
    def logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Return [B, T] float32 log-probabilities of response tokens, 0 elsewhere."""
        return self._pass_forward(batch, None, temperature).rows

    @in_own_layout
    @torch.no_grad()
    def scores(self, batch: PairBatch) -> Tensor:
        """Return [R] float32 scores without learning from them."""
        return self._pass_forward(batch, None, 1.0).rows

    @in_own_layout
    @torch.no_grad()
    def token_values(self, batch: PairBatch) -> Tensor:
        """Return [R, T] float32, the values whose sum or mean over the response is the score."""
        return self._pass_forward(batch, None, 1.0, TokenValueHead()).rows

    @in_own_layout
    def load_hf_weights(self, source: str | Path | Iterable[tuple[str, Tensor]]) -> None:
        """Take weights under their Hugging Face names from a folder or an iterator.

        In bf16 the float32 main weights begin at the rounded ones. The optimizer's moments stay.
        """
        load_hf_weights(self.modules_to_write(), self.hf_config, source)
        self.optimizer_to_write().reload_model_params()

    def hf_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield full tensors under their Hugging Face names; all ranks of the model iterate."""
        self.memory.wake_weights()
        weights = export_hf_weights(self._modules, self.hf_config)
        yield from self.parallel.megatron_state.around(weights)

    def has_finite_weights(self) -> bool:
        """Return whether all weights are finite; all ranks call it and get the same answer."""
        self.memory.wake_weights()
        return all(self.parallel.gather_over_world(are_finite(self._parameters())))

    def has_usable_state(self) -> bool:
        """Return whether weights, main weights and moments are finite, and no norm overflows.

        All ranks call it and get the same answer.
        """
        self.memory.wake_states()
        own = are_finite([*self._parameters(), *self.memory.optimizer_states()], squares=True)
        return all(self.parallel.gather_over_world(own))

    def snapshot(self) -> list[Tensor]:
        """Return a host copy of this rank's parameters, in a fixed order."""
        self.memory.wake_weights()
        return [to_host(parameter) for parameter in self._parameters()]

    @torch.no_grad()
    def swap(self, snapshot: list[Tensor]) -> None:
        """Exchange the parameters with a snapshot's, bit for bit; not the optimizer's copies."""
        self.modules_to_write()
        for parameter, host in zip(self._parameters(), snapshot, strict=True):
            current = parameter.detach().to("cpu", copy=True)
            parameter.copy_(host)
            host.copy_(current)

    @contextmanager
    def lent(self, snapshot: list[Tensor]) -> Iterator[None]:
        """Hold a snapshot's parameters inside the block, and the own ones again after it.

        The snapshot is only read, and the own are copied to the host only where that has not been
        done since they changed.
        """
        weights = self.memory.weights
        weights.copy_out()
        weights.allocate()
        try:
            weights.fill(self._parameters(), snapshot)
            yield
        finally:
            weights.copy_in()

    @in_own_layout
    @torch.no_grad()
    def restore(self, snapshot: list[Tensor]) -> None:
        """Go on from a snapshot's parameters, bit for bit.

        In bf16 the float32 main weights begin at them too: what they held beyond is not part of a
        snapshot. The optimizer's moments stay.
        """
        self.modules_to_write()
        for parameter, host in zip(self._parameters(), snapshot, strict=True):
            parameter.copy_(host)
        self.optimizer_to_write().reload_model_params()

    def modules_to_read(self) -> list[Any]:
        """Bring the weights to the device and return Megatron's model chunks."""
        self.memory.wake_weights()
        return self._modules

    def modules_to_write(self) -> list[Any]:
        """Bring the weights to the device, count them as changed, and return the model chunks."""
        self.memory.wake_weights()
        self.memory.weights.note_change()
        return self._modules

    def optimizer_to_read(self) -> MegatronOptimizer:
        """Bring weights and optimizer states to the device and return Megatron's optimizer."""
        self.memory.wake_states()
        return self._optimizer

    def optimizer_to_write(self) -> MegatronOptimizer:
        """Bring weights and optimizer states, count both as changed, and return the optimizer."""
        self.memory.wake_states()
        self.memory.note_change()
        return self._optimizer

    def sleep(self, keep_weights: bool = False) -> None:
        """Leave the device for host memory, or all but the weights; the next use comes back."""
        self.memory.sleep(keep_weights)

    def wake(self) -> None:
        """Come back to the device as a whole; what only reads the weights brings only them."""
        self.memory.wake()

    def _is_finite_everywhere(self, output: StepOutput, grad_norm: float) -> bool:
        """Return whether a step may be taken. One rank that took it alone would end the run."""
        numbers = (grad_norm, output.metrics.get("loss", 0.0))
        own = all(map(math.isfinite, numbers)) and bool(torch.isfinite(output.rows).all())
        return all(self.parallel.gather_over_world(own))

    def _pass_forward(
        self,
        batch: Batch | PairBatch,
        loss: LossFunction | None,
        temperature: float,
        head: Head | None = None,
    ) -> StepOutput:
        self.memory.wake_weights()
        # While it trains, a full recompute in FP8 keeps every scale until the backward pass.
        for chunk in self._chunks:
            chunk.eval()
        try:
            return self._forward_backward(batch, loss, temperature, forward_only=True, head=head)
        finally:
            for chunk in self._chunks:
                chunk.train()

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for chunk in self._modules for parameter in chunk.parameters()]

    def _wrap(self, chunk: Any) -> DistributedDataParallel:
        settings = self.settings
        chunk.to(self.parallel.device)
        ddp_config = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=settings.layout.use_distributed_optimizer,
        )
        # Without Megatron's Float16Module: the parameters have their type from the beginning, and
        # it would make a float32 copy of all logits.
        wrapped = DistributedDataParallel(chunk.config, ddp_config, chunk)
        chunk.config.finalize_model_grads_func = finalize_model_grads
        return wrapped
