"""A Megatron GPT model with one number per token in place of the vocabulary."""

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_gad.models.layers import current_device


class ScoreHead(MegatronModule):
    """Scalar head h -> w . h, the same weights on every tensor parallel rank, without bias.

    Float32 in every precision, in bf16 and FP8 as well: its weights, its product, its scores.

    The weights are drawn from N(0, head_std) with the generator given, so that equal seeds give
    equal heads at every layout.
    """

    def __init__(
        self,
        config: TransformerConfig,
        head_std: float,
        generator: torch.Generator,
        tp_group: ProcessGroup,
    ) -> None:
        super().__init__(config=config)
        self.tp_group = tp_group
        drawn = torch.randn(1, config.hidden_size, generator=generator) * head_std
        weight: Any = torch.nn.Parameter(drawn.to(current_device(), torch.float32))
        # Each rank sees its part of the sequence only: Megatron has to sum the weight's gradients.
        weight.sequence_parallel = config.sequence_parallel
        weight.is_embedding_or_output_parameter = True
        self.weight = weight

    def forward(self, hidden: Tensor) -> Tensor:
        """Score every token.

        Args:
            hidden: [T, B, H], or [T / TP, B, H] under sequence parallelism.

        Returns:
            [B, T] float32, the same on every tensor parallel rank.
        """
        scores = (hidden.float() @ self.weight.t()).squeeze(-1)
        if self.config.sequence_parallel:
            # Every rank goes on with the same whole result, so its gradient is split, not summed.
            scores = gather_from_sequence_parallel_region(
                scores, tensor_parallel_output_grad=False, group=self.tp_group
            )
        return scores.t().contiguous()


class ScorerModel(GPTModel):
    """GPTModel whose last stage ends in a ScoreHead; no output layer over a vocabulary is built."""

    def __init__(
        self,
        *,
        post_process: bool,
        head_std: float,
        generator: torch.Generator,
        **gpt_arguments: Any,
    ) -> None:
        # Told that it is not the last stage, GPTModel leaves out the output layer and the final
        # norm; the norm is added here in the same way, the output layer is the head.
        super().__init__(post_process=False, **gpt_arguments)
        if not post_process:
            return
        self.post_process = self.decoder.post_process = True
        norm: Any = self.decoder.submodules.layer_norm
        self.decoder.final_layernorm = build_module(
            norm,
            config=self.config,
            hidden_size=self.config.hidden_size,
            eps=self.config.layernorm_epsilon,
        )
        self.output_layer = ScoreHead(self.config, head_std, generator, self.pg_collection.tp)

    def _postprocess(self, hidden_states: Tensor, **_unused: Any) -> Tensor:
        """Return the scores [B, T] float32 on the last stage, the hidden states elsewhere."""
        return self.output_layer(hidden_states) if self.post_process else hidden_states
