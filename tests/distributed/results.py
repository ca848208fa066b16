"""Reads what workers left on disk, and compares it with what one rank made."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def load(path: Path) -> Any:
    """Return a file that a worker wrote."""
    return torch.load(path, weights_only=False)


def assert_close(
    found: dict[str, Tensor], expected: dict[str, Tensor], relative: float = 0.0
) -> None:
    """Equal to within a part of each tensor's largest entry; by default bit for bit."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        difference = (found[name] - value).abs().max().item()
        scale = value.abs().max().item()
        assert difference <= relative * scale, f"{name}: {difference:.3g} of {scale:.3g}"


def assert_updated_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal weights after AdamW, which makes a whole step of a gradient that is almost 0.

    So single entries may differ more than their mean.
    """
    assert_close(found, expected, relative=5e-4)
    differences = [(found[name] - value).abs().flatten() for name, value in expected.items()]
    assert torch.cat(differences).mean() < 1e-8
