"""How the ranks of a run share a model, and how the discriminator may differ in that."""

from dataclasses import dataclass, replace

from tyro.conf import DisallowNone

# GPUs of a host, if nothing was started yet that could tell.
HOST_GPUS = 8

# On the command line --name or --no-name; None, its default, where neither is given.
Switch = DisallowNone[bool | None]


@dataclass(frozen=True)
class ParallelConfig:
    """The layout, under Megatron's names. Data parallelism is what is left of the world size.

    Attributes:
        tensor_model_parallel_size: ranks that share every layer (TP).
        pipeline_model_parallel_size: ranks that share the layers among them (PP).
        virtual_pipeline_model_parallel_size: chunks of layers that a pipeline rank holds, run
            interleaved (VPP); default: one chunk, without interleaving.
        context_parallel_size: ranks that share every row's tokens among them (CP); rows are padded
            to a multiple of twice that.
        expert_model_parallel_size: ranks that share the experts among them (EP).
        expert_tensor_parallel_size: ranks that share one expert; default: as many as share the
            other layers.
        sequence_parallel: shard activations between tensor-parallel regions; needs TP of 2 or more.
        use_distributed_optimizer: shard optimizer states over data ranks.
    """

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int | None = None
    context_parallel_size: int = 1
    expert_model_parallel_size: int = 1
    expert_tensor_parallel_size: int | None = None
    sequence_parallel: bool = False
    use_distributed_optimizer: bool = False


@dataclass(frozen=True)
class OwnLayout:
    """A layout beside the student's over the same ranks; everything else follows from the two.

    Attributes:
        tensor_model_parallel_size: TP of this model; default: the student's.
        pipeline_model_parallel_size: PP of this model; default: the student's.
    """

    tensor_model_parallel_size: int | None = None
    pipeline_model_parallel_size: int | None = None

    def beside(self, student: ParallelConfig, has_experts: bool = True) -> ParallelConfig:
        """Return the whole layout of this model.

        Chunks of layers are the student's if PP is, and sequence parallelism is if TP is; with
        another TP it is on from 2 ranks on.

        has_experts: whether this model has some. Without them it shares the student's groups if
            nothing else differs, and in groups of its own takes no sizes over that need not fit.
        """
        tensor = self.tensor_model_parallel_size or student.tensor_model_parallel_size
        pipeline = self.pipeline_model_parallel_size or student.pipeline_model_parallel_size
        layout = replace(
            student, tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipeline
        )
        if tensor != student.tensor_model_parallel_size:
            layout = replace(layout, sequence_parallel=tensor > 1)
        if pipeline != student.pipeline_model_parallel_size:
            layout = replace(layout, virtual_pipeline_model_parallel_size=None)
        if layout != student and not has_experts:
            layout = replace(layout, expert_model_parallel_size=1, expert_tensor_parallel_size=None)
        return layout
