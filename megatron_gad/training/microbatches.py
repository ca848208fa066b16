"""A batch into microbatches, and what they computed back into one result."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from megatron_gad.data.batching import (
    AnyBatch,
    distinct_rows,
    rows_per_unit,
    take_rows,
    untrained_rows,
)
from megatron_gad.data.partition import MicrobatchBound, partition_units
from megatron_gad.training.parallel import Parallel
from megatron_gad.types import Batch, PairBatch

MetricSums = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Microbatches:
    """A data rank's batch, cut up; every data rank has as many microbatches.

    pieces: the last of them may be there only to make up the number; they train nothing.
    rows: the batch's rows, in the order in which the pieces hold them.
    real_tokens: of the rows that the model runs over, on all data ranks.
    padding_share: tokens that the model runs over and that are none of a row, of all tokens that
        it runs over, on all data ranks. It runs over equal rows once.
    """

    pieces: list[Batch | PairBatch]
    rows: list[int]
    real_tokens: int
    padding_share: float


def split_batch(
    batch: AnyBatch, bound: MicrobatchBound, with_loss: bool, parallel: Parallel, multiple: int = 1
) -> Microbatches:
    """Cut a batch into microbatches, each padded to its own longest row.

    A loss over pairs needs whole groups; else equal rows stay together. The model runs over equal
    rows once, and the bound counts them once. All data ranks call this: experts that are spread
    over them wait for each other in every microbatch, so a rank that has fewer gets empty ones.

    multiple: the number of microbatches is a multiple of this.
    """
    is_by_row = isinstance(batch, PairBatch) and batch.score_gradients is not None
    needs_groups = with_loss and not is_by_row and rows_per_unit(batch) > 1
    tokens_of_row: list[int] = batch.lengths.tolist()
    text_of_row: list[int] = distinct_rows(batch)[1].tolist()
    units = _groups(batch) if needs_groups else _alike(text_of_row)

    def run(rows: Sequence[int]) -> list[int]:
        """Return the lengths, among some rows, of those that the model runs over."""
        return list({text_of_row[row]: tokens_of_row[row] for row in rows}.values())

    joined = partition_units([run(unit) for unit in units], bound)
    parts = [[row for unit in part for row in units[unit]] for part in joined]
    lengths = [run(part) for part in parts]
    told = parallel.gather_over_data(
        (len(parts), sum(map(sum, lengths)), sum(map(bound.num_tokens, lengths)))
    )
    counts, real, computed = zip(*told, strict=True)

    number = -(-max(counts) // multiple) * multiple
    empty = untrained_rows(batch, bound.multiple_of)
    of_empty = bound.num_tokens([1] * len(distinct_rows(empty)[0]))
    total = sum(computed) + sum(number - n for n in counts) * of_empty
    pieces = [take_rows(batch, part, bound.multiple_of) for part in parts]
    return Microbatches(
        pieces=[*pieces, *[empty] * (number - len(pieces))],
        rows=[row for part in parts for row in part],
        real_tokens=sum(real),
        padding_share=1 - sum(real) / total,
    )


def _groups(batch: Batch | PairBatch) -> list[list[int]]:
    """Return the rows of every group."""
    size = rows_per_unit(batch)
    assert len(batch.lengths) % size == 0, f"{len(batch.lengths)} rows are no groups of {size}"
    return [list(range(start, start + size)) for start in range(0, len(batch.lengths), size)]


def _alike(text_of_row: Sequence[int]) -> list[list[int]]:
    """Return the rows of every text."""
    units: dict[int, list[int]] = {}
    for row, text in enumerate(text_of_row):
        units.setdefault(text, []).append(row)
    return list(units.values())


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


def join_rows(pieces: list[Tensor], rows: list[int], width: int) -> Tensor:
    """Return what the pieces computed per row in the order of the batch.

    pieces: [b] or [b, t], of every microbatch; t is cut or padded with zeros to the width.
    rows: of the batch, in the order in which the pieces hold them; what is behind them is dropped.
    """
    if pieces[0].dim() == 2:
        pieces = [
            torch.nn.functional.pad(piece, (0, max(0, width - piece.shape[1])))[:, :width]
            for piece in pieces
        ]
    joined = torch.cat(pieces).cpu()[: len(rows)]
    return torch.empty_like(joined).index_copy(0, torch.tensor(rows), joined)
