"""Which weights an engine is given, and in which buckets: planned at the first swap, replayed."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Size, Tensor

from megatron_gad.engines.hf_module import build_module, named_weights
from megatron_gad.engines.sglang.buckets import Bucket, BucketFiller, BucketLayout, Place


class WeightPlan:
    """The names and shapes of a model's weights, and how they are spread over buckets.

    The first swap without problems fixes the buckets. Later swaps copy every tensor straight to
    its place, and have to bring the same tensors in the same order.
    """

    def __init__(self, shapes: Mapping[str, Size], dtype: torch.dtype, buffer_size: int) -> None:
        """dtype: what the server computes in; everything is converted to it before it travels.

        buffer_size: bytes of a bucket at most, or one tensor that is larger itself.
        """
        self._shapes = dict(shapes)
        self._dtype = dtype
        self._buffer_size = buffer_size
        self._layouts: tuple[BucketLayout, ...] = ()
        self._num_updates = 0
        self._problems: list[str] = []
        self._missing: dict[str, Size] = {}

    @classmethod
    def of_folder(cls, hf_folder: str | Path, dtype: torch.dtype, buffer_size: int) -> "WeightPlan":
        """Read names and shapes from a Hugging Face folder's config.json."""
        module = build_module(hf_folder, torch.float32)
        shapes = {name: tensor.shape for name, tensor in named_weights(module).items()}
        return cls(shapes, dtype, buffer_size)

    @property
    def layouts(self) -> tuple[BucketLayout, ...]:
        """The buckets of every swap; empty before the first."""
        return self._layouts

    @property
    def num_bytes(self) -> int:
        """Bytes that one swap brings to a server."""
        return sum(shape.numel() for shape in self._shapes.values()) * self._dtype.itemsize

    @torch.no_grad()
    def buckets(self, named_tensors: Iterable[tuple[str, Tensor]]) -> Iterator[Bucket]:
        """Yield the model's tensors in buckets, each in new memory.

        Reads all tensors, whatever they are, since other ranks may take part in gathering them;
        ``problems`` then says what was wrong with them.
        """
        fitting = self._fitting(named_tensors)
        layouts: list[BucketLayout] = []
        for bucket in self._replay(fitting) if self._layouts else self._fill(fitting):
            place = Place(self._num_updates, len(layouts))
            layouts.append(bucket.layout)
            yield replace(bucket, place=place)
        self._num_updates += 1
        for _ in fitting:
            pass
        if not self.problems():
            self._layouts = tuple(layouts)

    def problems(self) -> list[str]:
        """Return what was wrong with the tensors of the last swap, once they are read."""
        return self._problems + [f"{name} is missing" for name in self._missing]

    def _fitting(self, named_tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that belong to the model, and note the others."""
        self._missing = dict(self._shapes)
        self._problems = []
        for name, tensor in named_tensors:
            shape = self._missing.pop(name, None)
            if shape is None:
                came = "came twice" if name in self._shapes else "is unexpected"
                self._problems.append(f"{name} {came}")
            elif shape != tensor.shape:
                self._problems.append(
                    f"{name} has the shape {tuple(tensor.shape)}, not {(*shape,)}"
                )
            else:
                yield name, tensor.detach()

    def _fill(self, fitting: Iterator[tuple[str, Tensor]]) -> Iterator[Bucket]:
        """Close a bucket whenever the next tensor does not fit."""
        filler: BucketFiller | None = None
        left = self.num_bytes
        for name, tensor in fitting:
            size = tensor.numel() * self._dtype.itemsize
            if filler is not None and not filler.has_room(tensor):
                yield filler.finish()
                filler = None  # before the next is made: its memory is the receiver's alone
            if filler is None:
                room = max(size, min(self._buffer_size, left))
                filler = BucketFiller(room, self._dtype, tensor.device)
            filler.add(name, tensor)
            left -= size
        if filler is not None:
            yield filler.finish()

    def _replay(self, fitting: Iterator[tuple[str, Tensor]]) -> Iterator[Bucket]:
        """Fill the buckets of the first swap again; stop where the order is another."""
        for layout in self._layouts:
            filler: BucketFiller | None = None
            for expected in layout.names:
                name, tensor = next(fitting, (None, None))
                if name is None or tensor is None:
                    return
                if name != expected:
                    self._problems.append(f"{name} came where {expected} came at the first swap")
                    return
                if filler is None:
                    filler = BucketFiller(layout.num_bytes, layout.dtype, tensor.device)
                filler.add(name, tensor)
            assert filler is not None, layout
            yield filler.finish()
