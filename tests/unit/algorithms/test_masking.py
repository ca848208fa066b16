"""Sums over responses: what is masked is not there."""

import pytest
import torch

from megatron_gad.algorithms.masking import aggregate, masked_count, masked_sum, zero_outside

NAN = float("nan")
VALUES = torch.tensor([[9.0, 1.0, 2.0, 6.0], [9.0, 9.0, 5.0, NAN], [NAN, NAN, NAN, NAN]])
MASK = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]]).bool()


def test_masked_sum_adds_what_is_in_the_mask():
    assert masked_sum(VALUES, MASK).item() == 14.0
    assert masked_count(MASK).item() == 4.0


def test_token_mean_counts_tokens():
    total, count = aggregate(VALUES, MASK, "token_mean")
    assert (total.item(), count.item()) == (14.0, 4.0)


def test_sequence_mean_counts_rows_that_have_a_token():
    total, count = aggregate(VALUES, MASK, "sequence_mean")
    assert (total.item(), count.item()) == (3.0 + 5.0, 2.0)


def test_constant_divides_every_response_by_the_same_length():
    total, count = aggregate(VALUES, MASK, "constant", max_length=4)
    assert (total.item(), count.item()) == (9.0 / 4 + 5.0 / 4, 2.0)


def test_an_all_masked_microbatch_gives_zero_and_still_has_a_gradient():
    values = torch.full((2, 3), NAN, requires_grad=True)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    for how in ("token_mean", "sequence_mean", "constant"):
        total, count = aggregate(values, mask, how, max_length=3)
        (gradient,) = torch.autograd.grad(total, values)
        assert (total.item(), count.item()) == (0.0, 0.0)
        assert torch.equal(gradient, torch.zeros(2, 3))


def test_a_formula_on_zeroed_inputs_has_no_nan_in_its_gradient():
    values = torch.tensor([1.0, NAN], requires_grad=True)
    (gradient,) = torch.autograd.grad(
        zero_outside(values, torch.tensor([True, False])).exp().sum(), values
    )
    torch.testing.assert_close(gradient, torch.tensor([1.0, 0.0]).exp() * torch.tensor([1.0, 0.0]))


def test_an_unknown_aggregation_names_the_allowed_ones():
    with pytest.raises(ValueError, match=r"aggregation = 'mean'; use 'token_mean'"):
        aggregate(VALUES, MASK, "mean")  # pyright: ignore[reportArgumentType]
