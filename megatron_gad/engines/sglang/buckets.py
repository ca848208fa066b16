"""Named tensors in one piece of memory: what travels to a server at a time."""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Size, Tensor


@dataclass(frozen=True)
class BucketLayout:
    """Which tensors a bucket holds, one after the other without gaps.

    names: Hugging Face names. shapes: of each. dtype: of all.
    """

    names: tuple[str, ...]
    shapes: tuple[Size, ...]
    dtype: torch.dtype

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The byte after each tensor; the next begins there."""
        return tuple(accumulate(shape.numel() * self.dtype.itemsize for shape in self.shapes))

    @property
    def num_bytes(self) -> int:
        """Size of the whole bucket."""
        return self.ends[-1]


class Place(NamedTuple):
    """Which bucket of which update of the weights; later ones are larger."""

    update: int
    number: int


FIRST = Place(0, 0)


@dataclass(frozen=True)
class Bucket:
    """A layout and its memory, which is never written again once the bucket is on its way.

    flat: [bytes] uint8.
    """

    layout: BucketLayout
    flat: Tensor
    place: Place = FIRST

    @property
    def named(self) -> list[tuple[str, Tensor]]:
        """(name, tensor) pairs; every tensor is a view of ``flat``."""
        starts = (0, *self.layout.ends)
        return [
            (name, self.flat[start:end].view(self.layout.dtype).view(shape))
            for name, shape, start, end in zip(
                self.layout.names, self.layout.shapes, starts, self.layout.ends, strict=False
            )
        ]

    def on_host(self) -> "Bucket":
        """Return the same bucket in host memory; itself where it is there already."""
        return self if self.flat.device.type == "cpu" else replace(self, flat=self.flat.cpu())


class BucketFiller:
    """Memory of a bucket to come, into which tensors are copied as they arrive."""

    def __init__(self, num_bytes: int, dtype: torch.dtype, device: torch.device) -> None:
        """num_bytes: room. dtype: what everything is converted to."""
        self._flat = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        self._dtype = dtype
        self._names: list[str] = []
        self._shapes: list[Size] = []
        self._end = 0

    def has_room(self, tensor: Tensor) -> bool:
        """Say whether a tensor still fits."""
        return self._end + tensor.numel() * self._dtype.itemsize <= self._flat.numel()

    def add(self, name: str, tensor: Tensor) -> None:
        """Copy a tensor behind the last one."""
        start, self._end = self._end, self._end + tensor.numel() * self._dtype.itemsize
        self._flat[start : self._end].view(self._dtype).view(tensor.shape).copy_(tensor)
        self._names.append(name)
        self._shapes.append(tensor.shape)

    def finish(self) -> Bucket:
        """Return the bucket; nothing can be added afterwards."""
        layout = BucketLayout(tuple(self._names), tuple(self._shapes), self._dtype)
        return Bucket(layout, self._flat[: self._end])
