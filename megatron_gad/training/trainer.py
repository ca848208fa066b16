"""The one trainer: a Megatron model, its optimizer, and the forward-backward schedule.

It knows no algorithm. A loss gets what the model computed for a microbatch and returns a sum and a
count; the trainer divides by the count summed over microbatches and data ranks, so that splitting,
padding and the number of data ranks cannot change the gradient.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor
from transformers import PretrainedConfig

from megatron_gad.models.build import build_language_model, build_scorer
from megatron_gad.models.hf_weights import export_hf_weights, load_hf_weights
from megatron_gad.training.context_parallel import context_group, own_tokens
from megatron_gad.training.heads import Head, LanguageHead, ScoreHead
from megatron_gad.training.microbatches import join_rows, split_batch, sum_metrics, to_device
from megatron_gad.training.offload import TrainerMemory, to_host
from megatron_gad.training.optimizer import Schedule, build_optimizer, forget_moments, take_step
from megatron_gad.training.options import (
    DiscriminatorConfig,
    OptimizerConfig,
    StudentConfig,
)
from megatron_gad.training.packing import as_rows, forward_packed
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.settings import TrainerSettings
from megatron_gad.types import Batch, Loss, PairBatch

AnyBatch = Batch | PairBatch
LossFunction = Callable[..., Loss]
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class StepOutput:
    """What one pass over a batch leaves behind, the same on all ranks of a model-parallel group.

    metrics: means over all microbatches and data ranks; after a training step also grad_norm,
        before clipping, and lr.
    rows: from before the update, for this data rank's rows: [B, T] logprobs or [R] scores.
    padding_share: see Microbatches; how the work was done, not what came out of it.
    """

    metrics: dict[str, float]
    rows: Tensor
    padding_share: float = 0.0


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
        optimizer_config: OptimizerConfig,
        settings: TrainerSettings,
    ) -> None:
        self.hf_config = hf_config
        self.parallel = parallel
        self._modules: list[Any] = chunks
        self._head = head
        self._optimizer_config = optimizer_config
        self.settings = settings
        self._chunks: list[Any] = [self._wrap(chunk) for chunk in chunks]
        no_sync = [chunk.no_sync for chunk in self._chunks]
        # All chunks have one configuration; an interleaved schedule takes the functions of each.
        self._modules[0].config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
        self._optimizer = build_optimizer(
            self._chunks,
            optimizer_config,
            settings.compute,
            distributed=settings.layout.use_distributed_optimizer,
        )
        self.memory = TrainerMemory(chunks, self._optimizer, parallel.device)
        self.begin_stage(optimizer_config.lr, total_steps=1)

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
            options = settings.model_options()
            chunks: list[Any] = build_language_model(hf_config, options, returns_logits=False)
            head = LanguageHead(chunks[-1], settings.compute.logprob_chunk_size)
            return cls(chunks, hf_config, head, parallel, config, settings)

    @classmethod
    def scorer(
        cls,
        hf_config: PretrainedConfig,
        config: DiscriminatorConfig,
        parallel: Parallel,
        settings: TrainerSettings,
    ) -> "Trainer":
        """Build the same network with a scalar head drawn from the run's seed."""
        options = settings.model_options()
        head = ScoreHead(config.score)
        with parallel.megatron_state.active():
            chunks = build_scorer(hf_config, options, config.head_std, settings.seed)
            return cls(chunks, hf_config, head, parallel, config, settings)

    def begin_stage(self, lr: float, total_steps: int, reset_optimizer: bool = False) -> None:
        """Start a learning-rate schedule; optionally forget the optimizer's moments."""
        if reset_optimizer:
            forget_moments(self._optimizer)
        self.schedule = Schedule(self._optimizer, self._optimizer_config, lr, total_steps)

    @in_own_layout
    def train(self, batch: AnyBatch, loss: LossFunction, temperature: float = 1.0) -> StepOutput:
        """Take one optimizer step.

        batch: this data rank's rows.
        loss: (LanguageOutput or ScorerOutput, microbatch) -> Loss.
        temperature: divides the logits of a language model.
        """
        self.wake()
        self.memory.note_change()
        for chunk in self._chunks:
            chunk.zero_grad_buffer()
        self._optimizer.zero_grad()
        output = self._run(batch, loss, temperature, forward_only=False)
        lr = self.schedule.step()
        grad_norm = take_step(self._optimizer)
        return replace(output, metrics={**output.metrics, "grad_norm": grad_norm, "lr": lr})

    @in_own_layout
    @torch.no_grad()
    def evaluate(self, batch: AnyBatch, loss: LossFunction) -> StepOutput:
        """Compute a loss's metrics over all data ranks without learning from it."""
        return self._run(batch, loss, 1.0, forward_only=True)

    @in_own_layout
    @torch.no_grad()
    def logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Return [B, T] float32 log-probabilities of response tokens, 0 elsewhere."""
        return self._run(batch, None, temperature, forward_only=True).rows

    @in_own_layout
    @torch.no_grad()
    def scores(self, batch: PairBatch) -> Tensor:
        """Return [R] float32 scores without learning from them."""
        return self._run(batch, None, 1.0, forward_only=True).rows

    @in_own_layout
    def load_hf_weights(self, source: str | Path | Iterable[tuple[str, Tensor]]) -> None:
        """Take weights under their Hugging Face names from a folder or an iterator.

        In bf16 the float32 main weights begin at the rounded ones. The optimizer's moments stay.
        """
        load_hf_weights(self.modules, self.hf_config, source)
        self.optimizer.reload_model_params()

    def hf_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield full tensors under their Hugging Face names; all ranks of the model iterate."""
        self.memory.wake_weights()
        weights = export_hf_weights(self._modules, self.hf_config)
        yield from self.parallel.megatron_state.around(weights)

    def snapshot(self) -> list[Tensor]:
        """Return a host copy of this rank's parameters, in a fixed order."""
        self.memory.wake_weights()
        return [to_host(parameter) for parameter in self._parameters()]

    @in_own_layout
    def snapshot_of(self, folder: str | Path) -> list[Tensor]:
        """Return a folder's weights as a snapshot; the trainer's own stay as they are."""
        own = self.snapshot()
        try:
            load_hf_weights(self.modules, self.hf_config, folder)
        finally:
            self.swap(own)
        return own

    @torch.no_grad()
    def swap(self, snapshot: list[Tensor]) -> None:
        """Exchange the parameters with a snapshot's, bit for bit; not the optimizer's copies."""
        self._begin_to_write()
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
        self._begin_to_write()
        for parameter, host in zip(self._parameters(), snapshot, strict=True):
            parameter.copy_(host)
        self.optimizer.reload_model_params()

    @property
    def modules(self) -> list[Any]:
        """Megatron's model chunks, on the device; who asks may write to them."""
        self._begin_to_write()
        return self._modules

    @property
    def optimizer(self) -> Any:
        """Megatron's optimizer, with all its states on the device; who asks may write to them."""
        self.wake()
        self.memory.note_change()
        return self._optimizer

    def sleep(self, keep_weights: bool = False) -> None:
        """Leave the device for host memory, or all but the weights; the next use comes back."""
        self.memory.sleep(keep_weights)

    def wake(self) -> None:
        """Come back to the device as a whole; what only reads the weights brings only them."""
        self.memory.wake()

    def _begin_to_write(self) -> None:
        self.memory.wake_weights()
        self.memory.weights.note_change()

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for chunk in self._modules for parameter in chunk.parameters()]

    def _wrap(self, chunk: Any) -> DistributedDataParallel:
        settings = self.settings
        chunk.to(self.parallel.device)
        ddp_config = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=settings.layout.use_distributed_optimizer,
            fp8_param_gather=settings.compute.fp8_param_gather,
        )
        # Without Megatron's Float16Module: the parameters have their type from the beginning, and
        # it would make a float32 copy of all logits.
        wrapped = DistributedDataParallel(chunk.config, ddp_config, chunk)
        chunk.config.finalize_model_grads_func = finalize_model_grads
        return wrapped

    def _run(
        self, batch: Any, loss: LossFunction | None, temperature: float, forward_only: bool
    ) -> StepOutput:
        """Pass all microbatches through the pipeline; return mean metrics and joined rows.

        Without a loss nothing but the rows is computed.
        """
        self.memory.wake_weights()
        settings = self.settings
        cut = split_batch(
            batch,
            settings.microbatch_bound(),
            loss is not None,
            self.parallel,
            settings.count_multiple(),
        )
        computed = get_forward_backward_func()(
            forward_step_func=partial(self._forward, loss, temperature),
            data_iterator=[iter(cut.pieces) for _ in self._chunks],
            model=self._chunks,
            num_microbatches=len(cut.pieces),
            # Lengths vary, so that the stages tell each other the shapes; these are not read.
            seq_length=batch.tokens.shape[1],
            micro_batch_size=settings.compute.micro_batch_size,
            forward_only=forward_only,
        )
        result = None
        if self.parallel.is_last_stage:
            metrics = sum_metrics([metrics for metrics, _ in computed], self.parallel)
            rows = join_rows([rows for _, rows in computed], cut.rows, batch.tokens.shape[1])
            result = metrics, rows
        return StepOutput(*self.parallel.from_last_stage(result), cut.padding_share)

    def _forward(
        self,
        loss: LossFunction | None,
        temperature: float,
        pieces: Iterator[Any],
        model: torch.nn.Module,
    ) -> tuple[Tensor, Callable]:
        """Megatron's forward step: the model's output, and what the last stage does with it."""
        piece = to_device(next(pieces), self.parallel.device)
        finish = partial(self._finish, piece, loss, temperature)
        if self.settings.compute.pack_sequences:
            return forward_packed(model, piece, self.settings.length_multiple()), finish
        width = piece.tokens.shape[1]
        positions = torch.arange(width, device=piece.tokens.device).expand_as(piece.tokens)
        own = [own_tokens(rows, context_group()) for rows in (piece.tokens, positions)]
        return model(*own, None), finish

    def _finish(
        self, piece: Any, loss: LossFunction | None, temperature: float, output: Tensor
    ) -> tuple[Tensor, Tensor, tuple[dict, Tensor]]:
        """Read the head, take the loss; keep its metric sums and the rows."""
        if self.settings.compute.pack_sequences:
            output = as_rows(output, piece)
        read = self._head.read(output, piece, temperature)
        rows = self._head.rows(read)
        if loss is None:
            return output.new_zeros(()), torch.zeros((), dtype=torch.int), ({}, rows)
        result = loss(read, piece)
        # Context-parallel ranks compute the same loss of the same rows; Megatron sums their counts.
        is_counted = parallel_state.get_context_parallel_rank() == 0
        count = result.count.to(torch.int) * is_counted
        # The total is also a metric, and a schedule may scale what it gets in place.
        return result.total.clone(), count, (result.metrics, rows)
