"""A piece of a flattened array as boxes of the array."""

import itertools

import pytest
import torch

from megatron_gad.training.optimizer_shards import boxes


@pytest.mark.parametrize("shape", [(7,), (3, 4), (1, 5), (4, 1), (2, 3, 4), (2, 1, 3)])
def test_boxes_hold_exactly_the_entries_of_a_piece_in_their_order(shape: tuple[int, ...]) -> None:
    """Of every piece there is, and no more of them than its two ends make necessary."""
    array = torch.arange(torch.Size(shape).numel()).view(shape)
    for start, end in itertools.combinations_with_replacement(range(array.numel() + 1), 2):
        found = list(boxes(shape, start, end))
        entries = []
        for box in found:
            corner = tuple(
                slice(at, at + size) for at, size in zip(box.offset, box.shape, strict=True)
            )
            assert array[corner].shape == box.shape
            assert array[corner].flatten()[0] == box.start
            entries += array[corner].flatten().tolist()
        assert entries == list(range(start, end))
        assert len(found) <= 2 * len(shape) - 1
