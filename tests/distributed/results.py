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
