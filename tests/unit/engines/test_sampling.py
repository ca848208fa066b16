"""Next-token sampling against hand-computed examples."""

import math

import numpy as np
import pytest
import torch

from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.sampling import draw, sample_tokens, uniform_draws


@pytest.mark.parametrize(
    ("uniform", "expected"),
    [(0.0, 1), (0.39, 1), (0.41, 2), (0.59, 2), (0.61, 4), (1.0 - 2.0**-53, 4)],
)
def test_a_draw_inverts_the_cumulative_distribution(uniform, expected):
    weights = torch.tensor([[0.0, 0.4, 0.2, 0.0, 0.4, 0.0]], dtype=torch.float64)
    uniforms = torch.tensor([uniform], dtype=torch.float64)
    assert draw(weights, uniforms).tolist() == [expected]
    assert draw(weights * 3, uniforms).tolist() == [expected]  # weights need not sum to one


def test_the_largest_uniform_number_never_draws_a_token_without_weight():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(2000, 50, generator=generator, dtype=torch.float64)
    weights[:, 30:] = 0.0
    drawn = draw(weights, torch.full((2000,), 1.0 - 2.0**-53, dtype=torch.float64))
    assert drawn.tolist() == [29] * 2000


def test_tokens_and_logprobs_are_of_the_tempered_softmax():
    logits = torch.tensor([[math.log(0.1), math.log(0.4), math.log(0.2), math.log(0.3)]])
    sampling = SamplingConfig(temperature=0.5)
    # At temperature 1/2 the probabilities are squared: 0.16 / (0.01 + 0.16 + 0.04 + 0.09) of the
    # second, which ends at 0.17 / 0.30 = 0.567; it would end at 0.5 without a temperature.
    ids, logprobs = sample_tokens(logits, torch.tensor([0.55], dtype=torch.float64), sampling)
    assert ids.tolist() == [1]
    assert logprobs.item() == pytest.approx(math.log(0.16 / 0.30), abs=1e-6)


def test_temperature_zero_takes_the_likeliest_and_reports_the_plain_softmax():
    logits = torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.bfloat16)
    uniforms = torch.tensor([0.0], dtype=torch.float64)
    ids, logprobs = sample_tokens(logits, uniforms, SamplingConfig(temperature=0.0))
    assert ids.tolist() == [1]
    expected = 3.0 - math.log(math.exp(1.0) + math.exp(3.0) + math.exp(2.0))
    assert logprobs.dtype == torch.float32
    assert logprobs.item() == pytest.approx(expected, abs=1e-6)


def test_the_draws_of_a_row_depend_on_its_seed_alone():
    many = uniform_draws([5, 2**62 + 1, 7], 40)
    alone = uniform_draws([2**62 + 1], 12)
    assert torch.equal(many[1, :12], alone[0])
    reference = np.random.Generator(np.random.Philox(key=7)).random(40)
    assert many[2].tolist() == reference.tolist()


def test_the_draws_are_uniform_and_rows_are_uncorrelated():
    draws = uniform_draws(range(200), 500)
    # Standard errors: mean 0.2887 / sqrt(100000) = 0.0009, correlation 1 / sqrt(99500) = 0.003.
    assert draws.mean().item() == pytest.approx(0.5, abs=0.004)
    assert draws.var().item() == pytest.approx(1 / 12, abs=0.002)
    centred = draws - 0.5
    neighbours = (centred[1:] * centred[:-1]).mean().item() * 12
    assert neighbours == pytest.approx(0.0, abs=0.013)
