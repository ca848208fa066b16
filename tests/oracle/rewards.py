"""From the rewards of responses to their advantages, in plain torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.oracle.models import Number


def summed(
    given: Mapping[str, Tensor], tables: Sequence[Mapping[str, Any]]
) -> tuple[Tensor, dict[str, Number]]:
    """Return the weighed sum of what rewards gave, and the mean of each.

    given: what each gives without its factor, [P, G]. tables: of the configuration.
    """
    total, numbers = torch.zeros(()), {}
    for table in tables:
        values = given[table["name"]].double() * table.get("arguments", {}).get("factor", 1.0)
        name, mean = f"reward/{table['name']}", float(values.mean())
        numbers[name] = Number(mean, float(values.abs().mean()))
        kind = table.get("normalization", "none")
        if kind == "batch":
            values = (values - values.mean()) / (values.std() + 1e-6)
        if kind == "group":
            middle, spread = values.mean(dim=1), values.std(dim=1) + 1e-6
            values = (values - middle[:, None]) / spread[:, None]
        bound = table.get("clip", torch.inf)
        total = total + table.get("weight", 1.0) * values.clamp(-bound, bound)
    return total.float(), numbers


def explained_by_length(rewards: Tensor, lengths: Tensor) -> tuple[float, Tensor]:
    """Fit a level for every group and one slope over log length; return it and what it explains."""
    x = lengths.double().log()
    if not (x - x.mean(dim=1, keepdim=True)).any():
        return 0.0, torch.zeros_like(rewards)
    levels = torch.eye(len(x)).double().repeat_interleave(x.shape[1], dim=0)
    table = torch.cat([x.flatten()[:, None], levels], dim=1)
    slope = torch.linalg.lstsq(table, rewards.double().flatten()[:, None]).solution[0, 0]
    return float(slope), slope * (x - x.mean(dim=1, keepdim=True))


def advantages_of(rewards: Tensor, kind: str) -> Tensor:
    """Return the advantages of every response over its group, [P, G]."""
    rewards, size = rewards.double(), rewards.shape[1]  # equal ones have exactly their mean
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if kind == "grpo":
        return centred / (rewards.std(dim=1, unbiased=True, keepdim=True) + 1e-6)
    if kind == "dr_grpo":
        return centred
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (size - 1)
    return rewards - others
