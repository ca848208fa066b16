"""The written-out gradients against finite differences and torch's own operations."""

import pytest
import torch
from torch.nn.functional import rms_norm, silu

from megatron_gad.models.attention import RotaryTable
from megatron_gad.models.autograd import RmsNorm, Rotate, Swiglu


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw float64 numbers that want a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def test_rms_norm_equals_torch_and_its_gradient_finite_differences() -> None:
    hidden, weight = random(3, 2, 8), random(8, seed=1)
    expected = rms_norm(hidden, (8,), weight, 1e-6)
    torch.testing.assert_close(RmsNorm.apply(hidden, weight, 1e-6), expected)
    assert torch.autograd.gradcheck(lambda x, w: RmsNorm.apply(x, w, 1e-6), (hidden, weight))


def test_swiglu_is_silu_of_the_first_half_times_the_second() -> None:
    gate_up = random(3, 2, 12)
    torch.testing.assert_close(
        Swiglu.apply(gate_up), silu(gate_up[..., :6]) * gate_up[..., 6:], rtol=0, atol=0
    )
    assert torch.autograd.gradcheck(Swiglu.apply, (gate_up,))


def test_rotation_turns_each_pair_by_its_angle() -> None:
    table = RotaryTable(torch.tensor([1.0, 0.25]))
    heads = random(3, 1, 4)
    cos, sin = table.at(3, like=heads)
    rotated = Rotate.apply(heads, cos, sin).view(3, 4)
    for position in range(3):
        for pair, frequency in enumerate((1.0, 0.25)):
            number = torch.complex(heads[position, 0, pair], heads[position, 0, pair + 2])
            angle = torch.tensor(position * frequency, dtype=torch.float64)
            turned = number * torch.polar(torch.ones_like(angle), angle)
            assert rotated[position, pair].item() == pytest.approx(turned.real.item(), abs=1e-6)
            assert rotated[position, pair + 2].item() == pytest.approx(turned.imag.item(), abs=1e-6)
    assert torch.autograd.gradcheck(lambda x: Rotate.apply(x, cos, sin), (heads,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_takes_its_statistics_in_float32(dtype: torch.dtype) -> None:
    hidden = (200.0 * random(4, 64)).to(dtype).detach().requires_grad_()  # squares overflow float16
    weight = random(64, seed=1).to(dtype).detach().requires_grad_()
    result = RmsNorm.apply(hidden, weight, 1e-6)
    expected = rms_norm(hidden.double(), (64,), weight.double(), 1e-6)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), expected, rtol=1e-2, atol=1e-3)
    gradients = torch.autograd.grad(result.sum(), (hidden, weight))
    assert [gradient.dtype for gradient in gradients] == [dtype, dtype]
