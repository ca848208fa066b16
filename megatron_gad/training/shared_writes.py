"""What several data ranks hold copies of is written once, an equal share by each of them."""

from typing import Any

import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.exchange_utils import (
    determine_main_replica_uniform_distribution,
)
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelSaveStrategyWrapper,
    distribute_main_replicas_with_precomputed_distribution,
)
from megatron.core.dist_checkpointing.validation import validate_sharding_integrity


class SharedWrites(FullyParallelSaveStrategyWrapper):
    """Megatron's way, but what every rank holds is told to the first rank alone, which checks it.

    Megatron's sends it to all ranks, for the first to check: to each of a thousand ranks up to
    90 MiB of a model of 70B parameters.
    """

    def apply_saving_parallelization(self, sharded_state_dict: dict[str, Any]) -> None:
        """Mark what this rank writes; raise on the first rank if a part has no writer, or two."""
        group: Any = self.parallelization_group
        shares = determine_main_replica_uniform_distribution(sharded_state_dict, group)
        distribute_main_replicas_with_precomputed_distribution(sharded_state_dict, group, shares)
        own = [part.without_data() for part in nested_values(sharded_state_dict)]
        is_first = dist.get_rank() == 0
        held: list[Any] = [None] * dist.get_world_size() if is_first else []
        dist.gather_object(own, held if is_first else None)
        validate_sharding_integrity(held)
