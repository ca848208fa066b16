"""Faults that only more than one rank can show: sums, shares, and who computes what."""

from tests.mutants.mutant import Mutant

FOLDER = "tests/distributed/"
BATCHING = (f"{FOLDER}test_batching.py",)
MIXED = (f"{FOLDER}test_mixed_layouts.py",)
TRAINING = (f"{FOLDER}test_training.py",)
ORACLE = ("tests/oracle/test_layouts.py::test_layouts_are_what_the_oracle_says",)

LAYOUT_MUTANTS = (
    Mutant(
        "all data ranks take the first share",
        "items[self.data_rank * size : (self.data_rank + 1) * size]",
        "items[:size]",
        ORACLE,
    ),
    Mutant(
        "metrics are those of one data rank",
        "total = parallel.sum_over_data(stacked)",
        "total = stacked",
        BATCHING,
    ),
    Mutant(
        "means over data ranks are means of their means",
        "return {name: total / count if count else 0.0 for name, (total, count) in totals.items()}",
        "return {\n        name: sum(part[name][0] / (part[name][1] or 1) for part in gathered)"
        " / len(gathered)\n        for name in totals}",
        (f"{FOLDER}test_training.py::test_data_ranks_share_rows_and_add_up",),
    ),
    Mutant(
        "scores come back in the order of the discriminator's ranks",
        "own = by_item[order.argsort()][",
        "own = by_item[",
        MIXED,
    ),
    Mutant(
        "gradients of the hidden states are those of one shard of the vocabulary",
        "    if shard.group is not None:\n        dist.all_reduce(d_hidden",
        "    if False:\n        dist.all_reduce(d_hidden",
        ORACLE,
    ),
    Mutant(
        "the normaliser is that of one shard of the vocabulary",
        "    if shard.group is not None:\n        dist.all_reduce(sums",
        "    if False:\n        dist.all_reduce(sums",
        ORACLE,
    ),
    Mutant(
        "under sequence parallelism the gradients of norms are those of a part of the tokens",
        "        weight.sequence_parallel = config.sequence_parallel\n"
        "        self.weight = weight\n\n    def forward(self, hidden: Tensor) -> Tensor:\n"
        '        """Normalise',
        "        self.weight = weight\n\n    def forward(self, hidden: Tensor) -> Tensor:\n"
        '        """Normalise',
        ORACLE,
    ),
    Mutant(
        "under sequence parallelism the gradient of the score head is that of a part of the tokens",
        "        weight.sequence_parallel = config.sequence_parallel\n"
        "        weight.is_embedding_or_output_parameter",
        "        weight.is_embedding_or_output_parameter",
        ORACLE,
    ),
    Mutant(
        "under sequence parallelism the gradients of hidden states are summed once too often",
        "hidden_states, tensor_parallel_output_grad=False, group",
        "hidden_states, tensor_parallel_output_grad=True, group",
        ORACLE,
    ),
    Mutant(
        "the gradient norm counts one part of the weights that are cut",
        "        set_tensor_model_parallel_attributes(weight, True, axis, 1)\n",
        "        pass\n",
        ORACLE,
    ),
    Mutant(
        "context-parallel ranks count their tokens twice",
        "is_counted = parallel_state.get_context_parallel_rank() == 0",
        "is_counted = True",
        TRAINING,
    ),
    Mutant(
        "context-parallel ranks take the tokens of others",
        "torch.cat((chunks[r], chunks[-1 - r]))",
        "torch.cat((chunks[r], chunks[(r + size) % (2 * size)]))",
        ("tests/unit/models/test_attention.py",),
    ),
    Mutant(
        "an interleaved schedule sends by batched messages",
        "overlap_p2p_comm=interleaved,\n        batch_p2p_comm=not interleaved,",
        "overlap_p2p_comm=False,\n        batch_p2p_comm=True,",
        TRAINING,
    ),
)
