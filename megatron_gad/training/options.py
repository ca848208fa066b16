"""What the user may choose about layout, arithmetic, the two models and checkpoints."""

from dataclasses import dataclass, fields, replace
from typing import Literal

from tyro.conf import DisallowNone

# On the command line --name or --no-name; None, its default, where neither is given.
Switch = DisallowNone[bool | None]
ModelName = Literal["student", "discriminator"]
ScoreKind = Literal["last_token", "sum"]
MomentType = Literal["fp32", "bf16", "fp16", "fp8"]
# Values that share a scale in recipe "blockwise"; what is gathered has to be whole blocks.
FP8_BLOCK = 128


@dataclass(frozen=True)
class ParallelConfig:
    """The layout, under Megatron's names. Data parallelism is what is left of the world size.

    Attributes:
        tensor_model_parallel_size: ranks that share every layer (TP).
        pipeline_model_parallel_size: ranks that share the layers among them (PP).
        virtual_pipeline_model_parallel_size: chunks of layers that a pipeline rank holds, run
            interleaved (VPP); None holds one.
        context_parallel_size: ranks that share every row's tokens among them (CP); rows are padded
            to a multiple of twice that.
        expert_model_parallel_size: ranks that share the experts among them (EP).
        expert_tensor_parallel_size: ranks that share one expert; None is as the other layers.
        sequence_parallel: shard activations between tensor-parallel regions; needs TP of 2 or more.
        use_distributed_optimizer: shard optimizer states over data ranks.
        distributed_timeout_minutes: a collective that waits longer ends the run.
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
        tensor_model_parallel_size: TP of this model; None is the student's, as below.
        pipeline_model_parallel_size: PP of this model.
        virtual_pipeline_model_parallel_size: VPP of this model; None is none where its PP is not
            the student's.
        context_parallel_size: CP of this model.
        expert_model_parallel_size: EP of this model; None is none where it has no experts.
        expert_tensor_parallel_size: ranks that share one of its experts; None as above.
        sequence_parallel: whether its activations are sharded; None is no where its TP is 1.
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


@dataclass(frozen=True)
class ComputeConfig:
    """How forward and backward are computed; nothing here changes the result beyond rounding.

    Attributes:
        micro_batch_size: rows of one forward, sorted by length where they are padded; the
            discriminator takes as many whole groups as fit in it, at least one (see
            discriminator.split_groups).
        max_tokens_per_microbatch: tokens of one forward, padding included, in place of a number of
            rows; rows are sorted by length. A group that has more is taken whole all the same.
        bf16: weights and activations in bfloat16, main weights and gradients in float32.
        transformer_impl: Megatron's own layers, or Transformer Engine's (needed for FP8).
        fp8_format: matrix products of the layers in FP8, by Transformer Engine; head and
            log-probabilities are not.
        fp8_recipe: how FP8 values are scaled; blockwise needs Hopper, mxfp8 Blackwell, delayed as
            many pipeline ranks for both models.
        fp8_param_gather: hold weights in FP8 and gather them so; needs the distributed optimizer,
            and "tensorwise" or "blockwise".
        first_last_layers_bf16: leave the first and last layers out of FP8; not with "delayed".
        num_layers_at_start_in_bf16: the first ones that first_last_layers_bf16 leaves out.
        num_layers_at_end_in_bf16: the last ones.
        recompute_granularity: recompute whole layers ("full") or attention ("selective") in the
            backward pass; None keeps activations.
        recompute_method: "full" for units of layers that cover the stage ("uniform"), or for some
            of its layers one by one ("block").
        recompute_num_layers: layers of a unit, or, by block, layers of a stage that recompute.
        use_precision_aware_optimizer: allow the types below; needs the distributed optimizer.
        exp_avg_dtype: of the first moment.
        exp_avg_sq_dtype: of the second moment.
        main_params_dtype: of the main weights.
        optimizer_cpu_offload: optimizer states and step on the host, all in float32; needs bf16 and
            use_precision_aware_optimizer, and stages without a discriminator.
        optimizer_offload_fraction: the part of the states that optimizer_cpu_offload moves.
        pack_sequences: run the rows of a microbatch as one sequence without padding; None packs
            where attention takes it: without context parallelism, and not in fp32 of Transformer
            Engine.
        logprob_chunk_size: response tokens whose logits are held at once; no others are computed.
    """

    micro_batch_size: int = 4
    max_tokens_per_microbatch: int | None = None
    bf16: bool = False
    transformer_impl: Literal["local", "transformer_engine"] = "local"
    fp8_format: Literal["e4m3", "hybrid"] | None = None
    fp8_recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = "delayed"
    fp8_param_gather: bool = False
    first_last_layers_bf16: bool = False
    num_layers_at_start_in_bf16: int = 1
    num_layers_at_end_in_bf16: int = 1
    recompute_granularity: Literal["full", "selective"] | None = None
    recompute_method: Literal["uniform", "block"] = "uniform"
    recompute_num_layers: int = 1
    use_precision_aware_optimizer: bool = False
    exp_avg_dtype: MomentType = "fp32"
    exp_avg_sq_dtype: MomentType = "fp32"
    main_params_dtype: Literal["fp32", "fp16"] = "fp32"
    optimizer_cpu_offload: bool = False
    optimizer_offload_fraction: float = 1.0
    pack_sequences: Switch = None
    logprob_chunk_size: int = 1024


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW without decay on norms and biases.

    Attributes:
        lr: learning rate where the stage gives none.
        min_lr: end of the cosine.
        lr_decay_style: the schedule, counted from the start of each stage.
        lr_warmup_steps: linear rise from 0 at the start of each stage.
        weight_decay: decoupled (AdamW).
        adam_beta1: decay of the first moment.
        adam_beta2: decay of the second moment.
        clip_grad: bound of the global gradient norm; 0: none.
    """

    lr: float = 1e-6
    min_lr: float = 0.0
    lr_decay_style: Literal["constant", "cosine"] = "constant"
    lr_warmup_steps: int = 0
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    clip_grad: float = 0.2


@dataclass(frozen=True)
class StudentConfig(OptimizerConfig):
    """The model that learns.

    Attributes:
        path: Hugging Face folder with config, safetensors weights and tokenizer.
    """

    path: str = ""


@dataclass(frozen=True)
class DiscriminatorConfig(OwnLayout, OptimizerConfig):
    """The model that scores.

    Attributes:
        path: Hugging Face folder; empty starts from the student's weights when the stage begins.
        score: read the last token's value, or sum the values of all response tokens.
        head_std: standard deviation of the scalar head's first weights.
        split_groups: where a whole group does not fit in memory: score first, then train row by
            row on the closed-form gradients. Equal gradients for one more forward.
    """

    path: str = ""
    score: ScoreKind = "last_token"
    head_std: float = 0.02
    split_groups: bool = False


@dataclass(frozen=True)
class CheckpointConfig:
    """Where a run lives and what it keeps.

    Attributes:
        save: the run directory; everything the run writes is in it. All hosts of a run share it.
        load: run directory to resume from; empty resumes from ``save`` if it holds a checkpoint.
        save_interval: steps between checkpoints; 0: only at the end of each stage.
        keep_last: older checkpoints than this many are deleted, once the next one is written: the
            disk has to hold one more; 0 keeps all.
        export: models written as Hugging Face folders ``<save>/<model>_hf`` when the run ends.
        export_stages: also write ``<save>/<model>_hf_<stage>`` when each stage ends.
    """

    save: str = "runs/run"
    load: str = ""
    save_interval: int = 50
    keep_last: int = 2
    export: tuple[ModelName, ...] = ("student",)
    export_stages: bool = False
