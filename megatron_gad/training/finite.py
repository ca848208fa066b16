"""Are numbers finite? One pass over each tensor, and one answer from the device for all."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def are_finite(tensors: Iterable[Tensor], squares: bool = False) -> bool:
    """Return whether there is neither an infinity nor a NaN in tensors of any shapes.

    Tensors that are no floating-point numbers, or hold them in 8 bits, count as finite.

    squares: also whether their squares add up to a float32, as those of usable weights do.
    """
    kept = (t for t in tensors if t.is_floating_point() and t.itemsize > 1 and t.numel())
    # A norm is infinite or NaN if one number is, and takes no memory to find.
    norms: dict[torch.device, list[Tensor]] = {}
    for tensor in kept:
        wide = torch.float32 if tensor.itemsize < 4 else None
        order = 2.0 if squares else math.inf
        norm = torch.linalg.vector_norm(tensor.detach(), order, dtype=wide)
        norms.setdefault(norm.device, []).append(norm.float())
    return all(bool(torch.isfinite(torch.stack(found)).all()) for found in norms.values())
