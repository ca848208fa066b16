"""Process groups of one run, and what a rank needs to know about its place in them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ParallelConfig:
    """The layout, under Megatron's names. Data parallelism is what is left of the world size.

    sequence_parallel: shard activations between tensor-parallel regions; needs TP of 2 or more.
    use_distributed_optimizer: shard optimizer states over data ranks; needs CUDA.
    distributed_timeout_minutes: a collective that waits longer ends the run.
    """

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    sequence_parallel: bool = False
    use_distributed_optimizer: bool = False
    distributed_timeout_minutes: int = 30
