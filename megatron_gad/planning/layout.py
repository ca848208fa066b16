"""How a model's parameters are divided over ranks, exactly as the model builder divides them."""

from dataclasses import dataclass
from typing import Literal

from megatron_gad.config.layout import HOST_GPUS
from megatron_gad.planning.shapes import ModelShape

Recompute = Literal["full", "selective"] | None


@dataclass(frozen=True)
class Layout:
    """Where the shards live.

    tensor, pipeline, data: sizes of the training layout; with ``context`` they make the world.
    context: ranks that share every row's tokens. virtual: chunks of layers of a pipeline rank.
    expert: ranks that share the experts out among them. expert_tensor: ranks that share one expert;
    None is as many as ``tensor``.
    engine_tensor: GPUs of one copy of the rollout engine. engines: its copies in all; None is as
    many as the GPUs hold.
    discriminator: its layout over the same ranks, where that is not the student's.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    context: int = 1
    virtual: int = 1
    expert: int = 1
    expert_tensor: int | None = None
    engine_tensor: int = 1
    engines: int | None = None
    sequence_parallel: bool = False
    distributed_optimizer: bool = False
    recompute: Recompute = None
    discriminator: "Layout | None" = None

    @property
    def of_discriminator(self) -> "Layout":
        """Return the layout of the discriminator, this one where it has none of its own."""
        return self.discriminator or self

    @property
    def model_group(self) -> int:
        """Return the ranks that work on one share of the data."""
        return self.tensor * self.pipeline * self.context

    @property
    def copies(self) -> int:
        """Return the ranks that hold the same shard, experts apart."""
        return self.data * self.context

    @property
    def world(self) -> int:
        """Return the GPUs that the layout uses."""
        return self.model_group * self.data

    @property
    def expert_shards(self) -> int:
        """Return the ranks over which the experts of a layer are divided."""
        return self.expert * (self.expert_tensor or self.tensor)

    @property
    def expert_copies(self) -> int:
        """Return the ranks that hold the same shard of the experts."""
        return max(1, self.tensor * self.copies // self.expert_shards)

    @property
    def num_engines(self) -> int:
        """Return the copies of the rollout engine."""
        if self.engines is not None:
            return self.engines
        # A copy of the model has its engine's copies on the host of its first rank.
        return self.data * (min(self.model_group, HOST_GPUS) // self.engine_tensor)

    def describe(self) -> str:
        """Return the layout in a few words."""
        words = f"{self._sizes()}, engine TP {self.engine_tensor}"
        words += f" x {self.engines}" if self.engines is not None else ""
        words += f", {self.recompute} recompute" if self.recompute else ""
        own = self.discriminator
        return words + (f"; the discriminator {own._sizes()}" if own else "")

    def _sizes(self) -> str:
        words = f"TP {self.tensor} x PP {self.pipeline} x DP {self.data}"
        words += f", CP {self.context}" if self.context > 1 else ""
        words += f", VPP {self.virtual}" if self.virtual > 1 else ""
        words += f", EP {self.expert}" if self.expert > 1 else ""
        return words + (f", ETP {self.expert_tensor}" if self.expert_tensor else "")


@dataclass(frozen=True)
class StageParameters:
    """Parameters that one rank of a pipeline stage holds; experts apart, they have fewer copies."""

    dense: int
    expert: int

    @property
    def total(self) -> int:
        """Return both kinds together."""
        return self.dense + self.expert


def stage_parameters(
    shape: ModelShape, layout: Layout, is_scorer: bool
) -> tuple[StageParameters, ...]:
    """Return what a rank of each pipeline stage holds, from first to last.

    Norms and routers are whole on every tensor-parallel rank; the vocabulary is rounded up to a
    multiple of them; a tied embedding is held once more by the last stage.
    """
    shards = layout.tensor
    attention = (shape.attention_matrices + shape.attention_biases) // shards
    share = shape.num_moe_layers / shape.num_layers
    num_layers = shape.num_layers // layout.pipeline
    num_mixtures = round(share * num_layers)
    dense = num_layers * (attention + shape.norm_parameters)
    dense += (num_layers - num_mixtures) * shape.ffn_parameters // shards
    dense += num_mixtures * shape.router_parameters
    experts = shape.num_experts * shape.expert_parameters // layout.expert_shards * num_mixtures
    embedding = -(-shape.vocab_size // shards) * shape.hidden_size
    stages = []
    for index in range(layout.pipeline):
        is_first, is_last = index == 0, index == layout.pipeline - 1
        own = dense + (embedding if is_first else 0)
        if is_last:
            has_own_head = not shape.is_tied or not is_first
            head = embedding if has_own_head else 0
            own += shape.hidden_size + (shape.hidden_size if is_scorer else head)
        stages.append(StageParameters(own, experts))
    return tuple(stages)


def layout_problems(shape: ModelShape, layout: Layout) -> list[str]:
    """Return which numbers of the shape the layout does not divide."""
    divided = [
        ("tensor parallel size", layout.tensor, "attention heads", shape.num_heads),
        ("tensor parallel size", layout.tensor, "key-value heads", shape.num_kv_heads),
        ("tensor parallel size", layout.tensor, "feed-forward width", shape.ffn_size),
        ("pipeline parallel size", layout.pipeline, "layers", shape.num_layers),
        ("engine's tensor parallel size", layout.engine_tensor, "heads", shape.num_heads),
        ("engine's tensor parallel size", layout.engine_tensor, "KV heads", shape.num_kv_heads),
    ]
    if layout.virtual > 1:
        chunks = layout.pipeline * layout.virtual
        divided.append(("number of pipeline chunks", chunks, "layers", shape.num_layers))
    if shape.num_experts or layout.expert > 1:
        ranks, cut = layout.tensor * layout.copies, layout.expert_tensor or layout.tensor
        divided += [
            ("expert parallel size", layout.expert, "experts", shape.num_experts),
            ("expert tensor parallel size", cut, "width of an expert", shape.expert_ffn_size),
            ("number of experts' shards", layout.expert_shards, "tensor x data ranks", ranks),
        ]
    return [
        f"{title} {size} does not divide the {number} {what}"
        for title, size, what, number in divided
        if number % size
    ]
