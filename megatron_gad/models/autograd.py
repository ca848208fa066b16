"""Three operations of a layer with their gradients written out.

On a CPU, where every elementwise operation is a pass over memory, autograd's way through them costs
twice as many. The formulas are those of transformers; statistics are taken in float32.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu


class RmsNorm(torch.autograd.Function):
    """y = w * x / sqrt(mean(x^2) + eps) over the last axis."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Normalise x: [..., H] with weight: [H]; y has the shape and dtype of x."""
        statistics_dtype = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=statistics_dtype)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """With n = x * scale: dx = scale * (dy w - n mean(dy w n)), dw = sum(dy n)."""
        (gradient,) = gradients
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        product = gradient * normed
        mean = (product @ weight.to(product.dtype)).div_(x.shape[-1]).unsqueeze(-1)
        along = (gradient * weight).to(normed.dtype)
        dx = along.addcmul_(normed, mean, value=-1).mul_(scale).to(x.dtype)
        return dx, product.flatten(0, -2).sum(0).to(weight.dtype), None


class Swiglu(torch.autograd.Function):
    """y = silu(gate) * up, where the input is gate beside up."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        """Gate gate_up: [..., 2 F]; y: [..., F]."""
        gate, up = gate_up.chunk(2, dim=-1)
        activated = silu(gate)
        ctx.save_for_backward(gate_up, activated)
        return activated * up

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """d gate = dy up silu'(gate), d up = dy silu(gate), both written into one tensor."""
        (gradient,) = gradients
        gate_up, activated = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_up)
        d_gate, d_up = result.chunk(2, dim=-1)
        torch.mul(gradient, activated, out=d_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=d_gate)
        return result


class Rotate(torch.autograd.Function):
    """The rotary embedding: y = x cos + (x with its halves swapped) sin."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate.

        Args:
            ctx: autograd's.
            x: [T, ..., head_dim].
            cos: broadcastable to x.
            sin: as cos, negative in its first half.
        """
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Rotate the gradient back."""
        (gradient,) = gradients
        cos, sin = ctx.saved_tensors
        return _rotate(gradient, cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), sin)
