"""Which runs are held against the oracle in which layouts."""

from typing import Any

# Of two ranks, with the cases that are compared there.
LAYOUTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "DP2, distributed optimizer": (
        {"use-distributed-optimizer": True},
        (
            "as published, with everything uneven",
            "several updates on an engine that is off",
            "resumed while sampling while training",
            "a snapshot taken anew, resumed",
            "those above the teacher's",
            "the best by rewards, above a discriminator's margin",
            "rewards beside the discriminator's",
            "past groups, resumed",
            "minibatches, gone through twice",
            "groups that differ in place of those that do not, resumed",
            "those, with a KL in the reward of minibatches",
            "a teacher's distribution, by what is sampled",
        ),
    ),
    "TP2, sequence parallel": (
        {"tensor-model-parallel-size": 2, "sequence-parallel": True},
        (
            "summed scores, cross-entropy, dr_grpo, k2",
            "the ratio of whole responses, clipped",
            "resumed in every stage",
            "the best of several, resumed",
            "whole groups, which have their prompt once",
            "a teacher's distribution, resumed",
        ),
    ),
    "PP2": (
        {"pipeline-model-parallel-size": 2},
        (
            "rloo, k1 in the reward",
            "groups split, single responses, padded",
            "dr_grpo in full, clipped on both sides of a negative advantage",
            "one snapshot, its answers below the teacher's",
            "a teacher's distribution, from both sides",
        ),
    ),
}
