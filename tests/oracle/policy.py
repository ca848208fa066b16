"""The objective of the student's update, in plain torch."""

import torch
from torch import Tensor

from tests.oracle.models import Options


def ratio_of(options: Options, gap: Tensor) -> Tensor:
    """Return how much likelier every token of a response became, or the response as a whole."""
    if options["gad.policy-loss"] == "gspo":
        return torch.exp(gap.mean()).expand(len(gap))
    return torch.exp(gap)


def objective(
    options: Options, now: Tensor, ratio: Tensor, advantage: float
) -> tuple[Tensor, Tensor]:
    """Return what is to be raised at every token of a response, and where it is held back."""
    below = options["gad.clip-range"]
    above = options["gad.clip-range-high"] or below
    if options["gad.policy-loss"] == "cispo":
        weight = torch.where(ratio > 1 + above, 1 + above, ratio.detach())
        return weight * advantage * now, ratio > 1 + above
    # A response that pays is raised up to a bound, one that does not is lowered to another.
    is_held = ratio > 1 + above if advantage > 0 else ratio < 1 - below
    bound = 1 + above if advantage > 0 else 1 - below
    objective = torch.where(is_held, bound, ratio) * advantage
    most = options["gad.dual-clip"]
    if most and advantage < 0:
        objective = torch.where(ratio > most, most * advantage, objective)
        is_held = is_held | (ratio > most)
    return objective, is_held if advantage else torch.zeros_like(is_held)


def kl_of(options: Options, logprobs: Tensor, anchor: Tensor) -> Tensor:
    """Return the estimate of the divergence from the reference at every token."""
    gap = anchor - logprobs
    kinds = {"k1": -gap, "k2": gap**2 / 2, "k3": torch.exp(gap) - 1 - gap}
    return kinds[options["gad.kl-estimator"]]


def average(options: Options, terms: list[Tensor]) -> Tensor:
    """Return the mean over all tokens, or over responses of what their tokens come to."""
    if options["gad.aggregation"] == "token_mean":
        return torch.cat(terms).mean()
    if options["gad.aggregation"] == "constant":
        cap = options["data.max-response-tokens"]
        return torch.stack([term.sum() / cap for term in terms]).mean()
    return torch.stack([term.mean() for term in terms]).mean()
