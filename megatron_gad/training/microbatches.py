"""A batch into microbatches, and what they computed back into one result."""

from dataclasses import fields, replace

import torch
from torch import Tensor

from megatron_gad.data.batching import AnyBatch, microbatches
from megatron_gad.training.parallel import Parallel
from megatron_gad.types import PairBatch

MetricSums = dict[str, tuple[Tensor, Tensor]]


def split_batch(batch: AnyBatch, rows: int, multiple_of: int, with_loss: bool) -> list[AnyBatch]:
    """Cut a batch into microbatches, each padded to its own longest row.

    rows: of a microbatch; a loss over pairs needs whole groups and then takes at least one.
    multiple_of: the padded length divides by this.
    """
    needs_groups = isinstance(batch, PairBatch) and with_loss and batch.score_gradients is None
    return microbatches(batch, rows, multiple_of, whole_groups=needs_groups)


def to_device(batch: AnyBatch, device: torch.device) -> AnyBatch:
    """Return the batch with its tensors on a device."""
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    moved = {name: x.to(device) for name, x in values.items() if isinstance(x, Tensor)}
    return replace(batch, **moved)


def sum_metrics(sums: list[MetricSums], parallel: Parallel) -> dict[str, float]:
    """Return sum / count of every metric over microbatches and data ranks.

    Called on the last pipeline stage; every microbatch carries the same names.
    """
    names = sorted(sums[0])
    if not names:
        return {}
    stacked = torch.stack(
        [torch.stack([torch.stack(piece[name]).double() for name in names]) for piece in sums]
    ).sum(dim=0)
    total = parallel.sum_over_data(stacked)
    means = total[:, 0] / total[:, 1].clamp(min=1e-12)
    return dict(zip(names, means.tolist(), strict=True))


def join_rows(rows: list[Tensor], width: int) -> Tensor:
    """Stack per-row results; [b, t] pieces are padded with zeros to [B, width]."""
    if rows[0].dim() == 1:
        return torch.cat(rows).cpu()
    padded = [torch.nn.functional.pad(x, (0, max(0, width - x.shape[1])))[:, :width] for x in rows]
    return torch.cat(padded).cpu()
