"""Which weights an engine has to be given: checked before anything is sent."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Size, Tensor

from megatron_gad.engines.hf_module import build_module


class WeightPlan:
    """The names and shapes of a model's weights; computed once."""

    def __init__(self, shapes: Mapping[str, Size]) -> None:
        self._shapes = dict(shapes)
        self._problems: list[str] = []
        self._missing: dict[str, Size] = {}

    @classmethod
    def of_folder(cls, hf_folder: str | Path) -> "WeightPlan":
        """Read them from a Hugging Face folder's config.json."""
        module = build_module(hf_folder, torch.float32)
        return cls({name: tensor.shape for name, tensor in module.named_parameters()})

    def fitting(self, named_tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that belong to the model, reading all; ``problems`` has the others."""
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
                yield name, tensor

    def problems(self) -> list[str]:
        """Return what was wrong with the tensors of the last ``fitting``, once it is read."""
        return self._problems + [f"{name} is missing" for name in self._missing]
