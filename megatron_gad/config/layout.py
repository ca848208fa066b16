"""How the ranks of a run share a model, and how the discriminator may differ in that."""

from dataclasses import dataclass, fields, replace

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
        distributed_timeout_minutes: time after which a collective that still waits ends the run.
    """

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int | None = None
    context_parallel_size: int = 1
    expert_model_parallel_size: int = 1
    expert_tensor_parallel_size: int | None = None
    sequence_parallel: bool = False
    use_distributed_optimizer: bool = False
    distributed_timeout_minutes: int = 30


@dataclass(frozen=True)
class OwnLayout:
    """A layout beside the student's over the same ranks; what is not given is as the student's.

    Attributes:
        tensor_model_parallel_size: TP of this model; default: the student's.
        pipeline_model_parallel_size: PP of this model; default: the student's.
        virtual_pipeline_model_parallel_size: VPP of this model; default: the student's, or none if
            PP differs.
        context_parallel_size: CP of this model; default: the student's.
        expert_model_parallel_size: EP of this model; default: the student's, or none if this model
            has no experts.
        expert_tensor_parallel_size: ranks that share one of its experts; default: the student's, or
            none if this model has no experts.
        sequence_parallel: shard this model's activations; default: as the student, and off if its
            TP is 1.
    """

    tensor_model_parallel_size: int | None = None
    pipeline_model_parallel_size: int | None = None
    virtual_pipeline_model_parallel_size: int | None = None
    context_parallel_size: int | None = None
    expert_model_parallel_size: int | None = None
    expert_tensor_parallel_size: int | None = None
    sequence_parallel: Switch = None

    def beside(self, student: ParallelConfig, has_experts: bool = True) -> ParallelConfig:
        """Return the whole layout of this model.

        has_experts: whether this model has some. Without them it shares the student's groups where
        nothing else differs, and in groups of its own takes no sizes over that need not fit there.
        """
        given = {field.name: getattr(self, field.name) for field in fields(OwnLayout)}
        layout = replace(student, **{key: x for key, x in given.items() if x is not None})
        # These two presuppose sizes that this model need not have.
        if self.sequence_parallel is None and layout.tensor_model_parallel_size == 1:
            layout = replace(layout, sequence_parallel=False)
        is_as_long = layout.pipeline_model_parallel_size == student.pipeline_model_parallel_size
        if self.virtual_pipeline_model_parallel_size is None and not is_as_long:
            layout = replace(layout, virtual_pipeline_model_parallel_size=None)
        if layout == student or has_experts:
            return layout
        return replace(
            layout,
            expert_model_parallel_size=self.expert_model_parallel_size or 1,
            expert_tensor_parallel_size=self.expert_tensor_parallel_size,
        )
