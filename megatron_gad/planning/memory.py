"""Bytes on one GPU, by role and phase, and what is left for the KV cache."""

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_gad.planning.layout import Layout, stage_parameters
from megatron_gad.planning.shapes import ModelShape

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Precision:
    """Bytes of one parameter in each place.

    weight: of the model's own copy; working: added by copies in another format (FP8 and its
        transpose); gradient: of the accumulation buffer; optimizer: of main weights and moments;
        activation, engine: of one activation, and of one weight of the engine.
    """

    weight: int
    working: int
    gradient: int
    optimizer: int
    activation: int
    engine: int


def precision_of(bf16: bool, fp8: bool) -> Precision:
    """Return what the trainer allocates: float32 gradients and moments, main weights with bf16."""
    if not bf16:
        return Precision(weight=4, working=0, gradient=4, optimizer=8, activation=4, engine=4)
    return Precision(
        weight=2, working=2 if fp8 else 0, gradient=4, optimizer=12, activation=2, engine=2
    )


@dataclass(frozen=True)
class ModelState:
    """Bytes that a trained model holds on one GPU."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """Return all of it."""
        return self.weights + self.gradients + self.optimizer

    @property
    def kept(self) -> int:
        """Return what outlives a step; gradients have memory only while their model trains."""
        return self.weights + self.optimizer


def model_state(
    shape: ModelShape, layout: Layout, precision: Precision, is_scorer: bool
) -> ModelState:
    """Return weights, gradients and optimizer of the fullest pipeline stage.

    M = n (b_weight + b_gradient + b_optimizer / D) for the n parameters of a rank, with D the
    ranks that share optimizer states: data x context, or the copies of the experts, and 1
    without the distributed optimizer.
    """
    is_sharded = layout.distributed_optimizer
    dense_copies = layout.copies if is_sharded else 1
    expert_copies = layout.expert_copies if is_sharded else 1
    states = []
    for stage in stage_parameters(shape, layout, is_scorer):
        sharded = -(-stage.dense // dense_copies) + -(-stage.expert // expert_copies)
        states.append(
            ModelState(
                weights=stage.total * (precision.weight + precision.working),
                gradients=stage.total * precision.gradient,
                optimizer=sharded * precision.optimizer,
            )
        )
    return max(states, key=lambda state: state.total)


@dataclass(frozen=True)
class Microbatch:
    """The largest microbatch that one model sees.

    tokens: of all its rows, padding included. count: of a step on one data rank.
    chunk: tokens whose logits are held at once; 0 for a scorer, which has none.
    is_joined: where a rank has whole rows, attention goes row by row, and its results are joined.
    """

    tokens: int
    count: int
    chunk: int
    is_joined: bool = False


def activation_bytes(
    shape: ModelShape, layout: Layout, precision: Precision, microbatch: Microbatch
) -> int:
    """Return activations and logits of the fullest pipeline stage while a model trains.

    Full recompute keeps a layer's input, 2 s b h bytes, and one layer while it is computed again. A
    pipeline holds min(PP, microbatches) microbatches on its first stage, where it is interleaved
    1 + (PP - 1) / (PP VPP) times as many. Context parallelism divides the tokens. The last layer
    may keep less: of what is not read nothing but keys and values.
    """
    tokens = -(-microbatch.tokens // layout.context)
    pipeline, virtual = layout.pipeline, layout.virtual
    interleaved = 1 + (pipeline - 1) / (pipeline * virtual) if virtual > 1 else 1
    in_flight = min(pipeline * interleaved, microbatch.count)
    num_layers = shape.num_layers // layout.pipeline
    inputs = tokens * shape.hidden_size * precision.activation
    layer = _layer_activations(shape, layout, precision, tokens, microbatch.is_joined)
    if layout.recompute == "full":
        kept = inputs // layout.tensor if layout.sequence_parallel else inputs
        body, one_pass = int(num_layers * kept * in_flight) + layer, num_layers * kept + layer
    else:
        body, one_pass = int(num_layers * layer * in_flight), num_layers * layer
    logits = 0
    if microbatch.chunk:
        columns = -(-shape.vocab_size // layout.tensor)
        # A float32 chunk with its softmax; a chunk's weight gradient, and that before it.
        logits = 2 * min(microbatch.chunk, tokens) * columns * FLOAT32_BYTES
        logits += 2 * columns * shape.hidden_size * precision.activation
    return max(body, one_pass + logits) if layout.pipeline > 1 else body + logits


def forward_bytes(
    shape: ModelShape, layout: Layout, precision: Precision, microbatch: Microbatch
) -> int:
    """Return activations of a pass without gradients: one layer's, and its input."""
    tokens = -(-microbatch.tokens // layout.context)
    layer = _layer_activations(shape, layout, precision, tokens, microbatch.is_joined)
    return layer + tokens * shape.hidden_size * precision.activation


def head_bytes(shape: ModelShape, layout: Layout, precision: Precision) -> int:
    """Return the bytes of a tensor-parallel rank's rows of the output layer."""
    return -(-shape.vocab_size // layout.tensor) * shape.hidden_size * precision.weight


def comparison_bytes(shape: ModelShape, layout: Layout, chunk: int) -> int:
    """Return what a comparison with a teacher adds to a student's logits of a chunk of tokens.

    The teacher's in float32, and two tensors as large that come of both.
    """
    return 3 * chunk * -(-shape.vocab_size // layout.tensor) * FLOAT32_BYTES


def _layer_activations(
    shape: ModelShape, layout: Layout, precision: Precision, tokens: int, is_joined: bool
) -> int:
    """Return the bytes that one layer keeps for its backward pass.

    In 16 bits s b (8 h + 6 a + 6 k + 8 f), with a and k the widths of all query and of all key
    heads: inputs and outputs of both norms; query, key and value before and after rotation, and
    attention's result; gate, up, the activated gate and their product. Attention's result is there
    once more, 2 a, where it is joined. Tensor parallelism divides all of it under sequence
    parallelism, without it all but the norms'.
    """
    is_mixture = shape.num_moe_layers > 0
    width = shape.experts_per_token * shape.expert_ffn_size if is_mixture else shape.ffn_size
    heads = shape.head_dim * (shape.num_heads + shape.num_kv_heads)
    norms = 8 * shape.hidden_size / (layout.tensor if layout.sequence_parallel else 1)
    joined = 2 * shape.head_dim * shape.num_heads if is_joined and layout.context == 1 else 0
    per_token = norms + (6 * heads + joined + 8 * width) / layout.tensor
    return int(tokens * per_token * precision.activation / 2)


def engine_weight_bytes(shape: ModelShape, layout: Layout, precision: Precision) -> int:
    """Return the bytes of the engine's weights on one of its GPUs."""
    return shape.num_parameters() * precision.engine // layout.engine_tensor


def kv_bytes_per_token(shape: ModelShape, layout: Layout, precision: Precision) -> int:
    """Return the bytes of one token's keys and values on one of the engine's GPUs."""
    width = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
    return max(1, width * precision.engine // layout.engine_tensor)


@dataclass(frozen=True)
class PhaseMemory:
    """Bytes on one GPU in one phase, by role.

    Roles are student, discriminator and engine (what they keep between steps), teacher,
    activations, swap_buffers and kv_cache.
    """

    phase: str
    by_role: Mapping[str, int]
    usable: int

    @property
    def total(self) -> int:
        """Return what the phase needs."""
        return sum(self.by_role.values())

    @property
    def missing(self) -> int:
        """Return the bytes that do not fit."""
        return max(0, self.total - self.usable)
