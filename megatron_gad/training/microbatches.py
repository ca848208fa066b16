"""A batch into microbatches, and what they computed back into one result."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from megatron_gad.data.batching import (
    AnyBatch,
    distinct_rows,
    prompts_of_rows,
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
    real_tokens: that the model runs over and that are of a row, on all data ranks. It runs over
        equal rows once, and over a shared prompt once in a microbatch.
    padding_share: tokens that the model runs over and that are of no row, of all tokens that it
        runs over, on all data ranks.
    shared_prompt_share: tokens of prompts that it need not run over, because another row of the
        microbatch has the prompt too, of all tokens of the rows, on all data ranks.
    """

    pieces: list[Batch | PairBatch]
    rows: list[int]
    real_tokens: int
    padding_share: float
    shared_prompt_share: float


def split_batch(
    batch: AnyBatch, bound: MicrobatchBound, with_loss: bool, parallel: Parallel, multiple: int = 1
) -> Microbatches:
    """Cut a batch into microbatches, each padded to its own longest row.

    A loss over pairs needs whole groups; else equal rows stay together, and rows that share a
    prompt as far as the bound allows. The model runs over equal rows once, and the bound counts
    them once. If any rows share a prompt, a bound by rows is one by the tokens of as many rows.
    All data ranks call this: experts that are spread over them wait for each other in every
    microbatch, so a rank that has fewer gets empty ones.

    multiple: the number of microbatches is a multiple of this.
    """
    is_by_row = isinstance(batch, PairBatch) and batch.score_gradients is not None
    needs_groups = with_loss and not is_by_row and rows_per_unit(batch) > 1
    reading = _read_rows(batch, bound.shares_prompts)
    if reading.have_equal_prompts:
        bound = bound.in_tokens(max(reading.tokens))
    units = _groups(batch) if needs_groups else _units(reading, bound)
    joined = partition_units([reading.lengths(unit) for unit in units], bound)
    parts = [[row for unit in part for row in units[unit]] for part in joined]
    lengths = [reading.lengths(part) for part in parts]
    told = parallel.gather_over_data(
        (
            len(parts),
            sum(map(sum, lengths)),
            sum(map(bound.num_tokens, lengths)),
            sum(sum(reading.whole_lengths(part)) for part in parts),
        )
    )
    counts, real, computed, whole = zip(*told, strict=True)

    number = -(-max(counts) // multiple) * multiple
    empty = untrained_rows(batch, bound.multiple_of)
    of_empty = bound.num_tokens(
        _read_rows(empty, bound.shares_prompts).lengths(range(len(empty.lengths)))
    )
    total = sum(computed) + sum(number - n for n in counts) * of_empty
    pieces = [take_rows(batch, part, bound.multiple_of) for part in parts]
    return Microbatches(
        pieces=[*pieces, *[empty] * (number - len(pieces))],
        rows=[row for part in parts for row in part],
        real_tokens=sum(real),
        padding_share=1 - sum(real) / total,
        shared_prompt_share=1 - sum(real) / sum(whole),
    )


@dataclass(frozen=True)
class _Rows:
    """What a model reads of every row of a batch.

    tokens: of each row. texts: the same number for equal rows. prompts: (number, tokens) of each
    row's prompt, the same number for those that are computed once.
    """

    tokens: list[int]
    texts: list[int]
    prompts: list[tuple[int, int]]

    @property
    def have_equal_prompts(self) -> bool:
        """Whether rows that differ have a prompt that is computed once."""
        return len({number for number, _ in self.prompts}) < len(set(self.texts))

    def lengths(self, rows: Sequence[int]) -> list[int]:
        """Return the tokens that a model runs over for some rows in a microbatch.

        Of equal rows the first counts; of those with the same prompt the first counts it.
        """
        seen: set[int] = set()
        found: list[int] = []
        for row in self._distinct(rows):
            prompt, size = self.prompts[row]
            found.append(self.tokens[row] - (size if prompt in seen else 0))
            seen.add(prompt)
        return found

    def whole_lengths(self, rows: Sequence[int]) -> list[int]:
        """Return the same if every row had its prompt for itself."""
        return [self.tokens[row] for row in self._distinct(rows)]

    def _distinct(self, rows: Sequence[int]) -> list[int]:
        first: dict[int, int] = {}
        for row in rows:
            first.setdefault(self.texts[row], row)
        return list(first.values())


def _read_rows(batch: Batch | PairBatch, shares_prompts: bool) -> _Rows:
    texts: list[int] = distinct_rows(batch)[1].tolist()
    prompts = prompts_of_rows(batch) if shares_prompts else [(text, 0) for text in texts]
    return _Rows(batch.lengths.tolist(), texts, prompts)


def _units(rows: _Rows, bound: MicrobatchBound) -> list[list[int]]:
    """Return the rows that stay together: those with one prompt, cut where the bound is reached.

    Equal rows are never cut.
    """
    units: list[list[int]] = []
    for alike in _alike([prompt for prompt, _ in rows.prompts]):
        part: list[int] = []
        for equal in _alike([rows.texts[row] for row in alike]):
            more = [alike[index] for index in equal]
            if part and not bound.holds(rows.lengths([*part, *more])):
                units.append(part)
                part = []
            part = [*part, *more]
        units.append(part)
    return units


def _groups(batch: Batch | PairBatch) -> list[list[int]]:
    """Return the rows of every group."""
    size = rows_per_unit(batch)
    assert len(batch.lengths) % size == 0, f"{len(batch.lengths)} rows are no groups of {size}"
    return [list(range(start, start + size)) for start in range(0, len(batch.lengths), size)]


def _alike(numbers: Sequence[int]) -> list[list[int]]:
    """Return the positions of every number."""
    found: dict[int, list[int]] = {}
    for position, number in enumerate(numbers):
        found.setdefault(number, []).append(position)
    return list(found.values())


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
