"""One pass of a batch through a model: microbatches through the pipeline, a loss at its end."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_gad.data.batching import without_copies
from megatron_gad.models.layers import ends_where_read
from megatron_gad.models.slots import unwrapped
from megatron_gad.training.context_parallel import context_group, own_tokens
from megatron_gad.training.divergence import Taught
from megatron_gad.training.heads import DivergenceHead, Head, LanguageHead
from megatron_gad.training.microbatches import join_rows, split_batch, sum_metrics, to_device
from megatron_gad.training.packing import PackedOutput, pack_rows
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.settings import TrainerSettings
from megatron_gad.types import Loss, ScorerOutput

LossFunction = Callable[..., Loss]


@dataclass(frozen=True)
class StepOutput:
    """What one pass over a batch leaves behind, the same on all ranks of a model-parallel group.

    metrics: means over all microbatches and data ranks; after a training step also grad_norm,
        before clipping, lr, and skipped_steps, 1 for a step that left the model as it was.
    rows: from before the update, for this data rank's rows: [B, T] logprobs or [R] scores.
    padding_share, shared_prompt_share: see Microbatches; how the work was done, not what came out
        of it.
    trained_tokens: real tokens that passed forward and backward, on all data ranks.
    """

    metrics: dict[str, float]
    rows: Tensor
    padding_share: float = 0.0
    shared_prompt_share: float = 0.0
    trained_tokens: int = 0

    @property
    def is_skipped(self) -> bool:
        """Whether a training step left the model as it was; equal on all ranks."""
        return self.metrics.get("skipped_steps", 0.0) > 0


class _Reading(NamedTuple):
    """A microbatch on the device.

    rows: what the model runs over. batch: what the loss is told of. row_of: [R] int64, which of
        ``rows`` each row of ``batch`` is.
    """

    rows: Any
    batch: Any
    row_of: Tensor


class _Task(NamedTuple):
    """What a pass does with every microbatch; without a loss nothing but rows is computed."""

    head: Head
    loss: LossFunction | None
    temperature: float


class ForwardBackward:
    """Runs a model's chunks over batches; gradients stay in Megatron's buffers."""

    def __init__(
        self, chunks: list[Any], head: Head, settings: TrainerSettings, parallel: Parallel
    ) -> None:
        """chunks: of this pipeline stage, wrapped for data parallelism. head: at the last's end."""
        self._chunks = chunks
        self._head = head
        self._settings = settings
        self._parallel = parallel

    def __call__(
        self,
        batch: Any,
        loss: LossFunction | None,
        temperature: float,
        forward_only: bool,
        taught: Taught | None = None,
        head: Head | None = None,
    ) -> StepOutput:
        """Pass all microbatches through; return mean metrics and joined rows.

        batch: this data rank's rows. temperature: divides the logits of a language model. Without a
        loss nothing but the rows is computed. taught: lets the loss have the divergence from a
        teacher; on a rank that is not of the last stage it is not read. head: reads the output
        instead of the model's own.
        """
        head = head or self._head
        if taught is not None and self._parallel.is_last_stage:
            assert isinstance(head, LanguageHead), head
            head = DivergenceHead(head, taught)
        settings = self._settings
        cut = split_batch(
            batch,
            settings.microbatch_bound(),
            loss is not None,
            self._parallel,
            settings.count_multiple(),
        )
        computed = get_forward_backward_func()(
            forward_step_func=partial(self._forward, _Task(head, loss, temperature)),
            data_iterator=[iter(cut.pieces) for _ in self._chunks],
            model=self._chunks,
            num_microbatches=len(cut.pieces),
            # Lengths vary, so that the stages tell each other the shapes; these are not read.
            seq_length=batch.tokens.shape[1],
            micro_batch_size=settings.compute.micro_batch_size,
            forward_only=forward_only,
        )
        result = None
        if self._parallel.is_last_stage:
            metrics = sum_metrics([metrics for metrics, _ in computed], self._parallel)
            rows = join_rows([rows for _, rows in computed], cut.rows, batch.tokens.shape[1])
            result = metrics, rows
        trained = 0 if forward_only else cut.real_tokens
        shares = cut.padding_share, cut.shared_prompt_share
        return StepOutput(*self._parallel.from_last_stage(result), *shares, trained)

    def _forward(
        self,
        task: _Task,
        pieces: Iterator[Any],
        model: torch.nn.Module,
    ) -> tuple[Tensor, Callable]:
        """Megatron's forward step: the model's output, and what the last stage does with it."""
        whole = next(pieces)
        on_host, row_of = without_copies(whole)
        device = self._parallel.device
        piece = to_device(on_host, device)
        batch = piece if on_host is whole else to_device(whole, device)
        reading = _Reading(piece, batch, row_of.to(device))
        finish = partial(self._finish, task, reading)
        if self._settings.is_packed:
            settings = self._settings
            is_cut = ends_where_read(unwrapped(self._chunks[-1]))
            reads = task.head.reads(on_host) if is_cut else None
            multiple, shares = settings.length_multiple(), settings.shares_prompts
            packed = pack_rows(on_host, multiple, device, shares, reads)
            return packed.forward(model), partial(finish, places=packed.places)
        width = piece.tokens.shape[1]
        positions = torch.arange(width, device=piece.tokens.device).expand_as(piece.tokens)
        own = [own_tokens(rows, context_group()) for rows in (piece.tokens, positions)]
        return model(*own, None), finish

    def _finish(
        self,
        task: _Task,
        reading: _Reading,
        output: Tensor,
        places: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, tuple[dict, Tensor]]:
        """Read the head, take the loss; keep its metric sums and the rows."""
        found = output if places is None else PackedOutput(output, places)
        read = task.head.read(found, reading.rows, task.temperature)
        if isinstance(read, ScorerOutput):
            read = ScorerOutput(read.scores[reading.row_of])
        elif isinstance(read, Tensor):
            read = read[reading.row_of]
        rows = task.head.rows(read)
        if task.loss is None:
            return output.new_zeros(()), torch.zeros((), dtype=torch.int), ({}, rows)
        result = task.loss(read, reading.batch)
        # Context-parallel ranks compute the same loss of the same rows; Megatron sums their counts.
        is_counted = parallel_state.get_context_parallel_rank() == 0
        count = result.count.to(torch.int) * is_counted
        # The total is also a metric, and a schedule may scale what it gets in place.
        return result.total.clone(), count, (result.metrics, rows)
