"""Next-token sampling against hand-computed examples."""

import math

import numpy as np
import pytest
import torch

from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.sampling import candidates, draw, sample_tokens, uniform_draws

# Probabilities 0.1, 0.4, 0.2, 0.3 of the ids 0, 1, 2, 3.
PROBABILITIES = torch.tensor([[0.1, 0.4, 0.2, 0.3]])


@pytest.mark.parametrize(
    ("top_k", "top_p", "expected"),
    [
        (0, 1.0, [0.1, 0.4, 0.2, 0.3]),
        (1, 1.0, [0.0, 0.4, 0.0, 0.0]),
        (3, 1.0, [0.0, 0.4, 0.2, 0.3]),
        (9, 1.0, [0.1, 0.4, 0.2, 0.3]),
        (0, 0.01, [0.0, 0.4, 0.0, 0.0]),
        (0, 0.65, [0.0, 0.4, 0.0, 0.3]),
        (0, 0.75, [0.0, 0.4, 0.2, 0.3]),
        (0, 0.95, [0.1, 0.4, 0.2, 0.3]),
        # Of the three kept by top-k, 0.4 and 0.3 are 0.7 / 0.9 = 0.78 of what is left.
        (3, 0.75, [0.0, 0.4, 0.0, 0.3]),
        (3, 0.80, [0.0, 0.4, 0.2, 0.3]),
    ],
)
def test_top_k_and_top_p_keep_the_hand_computed_tokens(top_k, top_p, expected):
    kept = candidates(PROBABILITIES.log(), top_k, top_p)
    torch.testing.assert_close(
        kept, torch.tensor([expected], dtype=torch.float64), rtol=0, atol=1e-7
    )


def test_equally_likely_tokens_are_kept_by_their_ids():
    kept = candidates(torch.full((1, 5), 0.2).log(), top_k=2, top_p=1.0)
    assert (kept > 0).tolist() == [[True, True, False, False, False]]


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


def test_logprobs_are_of_the_tempered_softmax_before_any_filter():
    logits = torch.tensor([[math.log(0.1), math.log(0.4), math.log(0.2), math.log(0.3)]])
    sampling = SamplingConfig(temperature=0.5, top_k=1)
    ids, logprobs = sample_tokens(logits, torch.tensor([0.99], dtype=torch.float64), sampling)
    # At temperature 1/2 the probabilities are squared: 0.16 / (0.01 + 0.16 + 0.04 + 0.09).
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
