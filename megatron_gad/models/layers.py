"""The modules put into Megatron's layer specification where Transformer Engine is not used.

The stock RMSNorm refuses sequence parallelism, and the stock attention refuses packed sequences and
context parallelism and allocates every score; these two replace them on any device.
"""

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention


class RMSNorm(torch.nn.Module):
    """Root mean square normalisation over the last axis, for whole or sequence-parallel inputs."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(
            torch.ones(hidden_size, dtype=config.params_dtype, device=current_device())
        )
        # Megatron sums the gradients of marked parameters over the tensor parallel ranks.
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise; hidden: [..., H], any float dtype, same shape and dtype out."""
        return rms_norm(hidden, self.weight.shape, self.weight, self.eps)


class CoreAttention(MegatronModule):
    """Causal attention over torch's scaled_dot_product_attention."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        *,
        cp_comm_type: str | None = None,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        """Build; the arguments are those Megatron's Attention passes, of which few matter here."""
        super().__init__(config=config)
        self.softmax_scale = softmax_scale
        self.cp_group = None
        if config.context_parallel_size > 1:
            assert pg_collection is not None, "context parallelism needs its process group"
            self.cp_group = pg_collection.cp

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attend from every position to itself and the ones before it.

        Args:
            query: [T, B, heads, head_dim], or packed [tokens, heads, head_dim].
            key: as query, with the number of query groups for heads.
            value: as key.
            attention_mask: bool, broadcastable to [B, heads, T, T], True where attention is
                forbidden (Megatron's convention); None for causal attention.
            attn_mask_type: not used.
            attention_bias: must be None.
            packed_seq_params: the lengths of packed sequences.

        Returns:
            [T, B, heads * head_dim], or packed [tokens, heads * head_dim].
        """
        assert attention_bias is None, "attention_bias is not supported"
        if packed_seq_params is not None:
            return self._attend_packed(query, key, value, packed_seq_params)
        if self.cp_group is not None:
            return self._attend_context_parallel(query, key, value)
        allowed = None if attention_mask is None else ~attention_mask
        return self._attend(query, key, value, allowed)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
        """Attend causally, or where allowed: bool, broadcastable to [B, heads, T, keys]."""
        context = scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            attn_mask=allowed,
            is_causal=allowed is None,
            scale=self.softmax_scale,
            enable_gqa=query.size(2) != key.size(2),
        )
        return context.permute(2, 0, 1, 3).flatten(start_dim=2)

    def _attend_packed(
        self, query: Tensor, key: Tensor, value: Tensor, packed: PackedSeqParams
    ) -> Tensor:
        """Attend within each packed sequence."""
        assert self.cp_group is None, "packed sequences under context parallelism are not supported"
        lengths = packed.cu_seqlens_q.diff().tolist()
        parts = zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True)
        contexts = [
            self._attend(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), None) for q, k, v in parts
        ]
        return torch.cat(contexts).squeeze(1)

    def _attend_context_parallel(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from this rank's two chunks of the sequence to the keys of all ranks."""
        key = gather_from_sequence_parallel_region(key, group=self.cp_group)
        value = gather_from_sequence_parallel_region(value, group=self.cp_group)
        positions = context_parallel_positions(query.size(0), self.cp_group.size()).to(query.device)
        allowed = positions.flatten() <= positions[self.cp_group.rank()].unsqueeze(1)
        return self._attend(query, key, value, allowed)


def local_block_spec(config: TransformerConfig, num_layers: int) -> TransformerBlockSubmodules:
    """Name the classes that the layers of one stage, and the final norm, are made of."""
    head_norm = RMSNorm if config.qk_layernorm else IdentityOp
    attention = SelfAttentionSubmodules(
        linear_qkv=ColumnParallelLinear,
        core_attention=CoreAttention,
        linear_proj=RowParallelLinear,
        q_layernorm=head_norm,
        k_layernorm=head_norm,
    )
    layer = ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=attention,
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=ModuleSpec(
                module=MLP,
                submodules=MLPSubmodules(
                    linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear
                ),
            ),
            mlp_bda=get_bias_dropout_add,
            # Checkpoints carry the fused modules' names, so that either kind reads the other's.
            sharded_state_dict_keys_map={
                "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
                "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
            },
        ),
    )
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=RMSNorm)


def context_parallel_positions(num_tokens: int, context_parallel_size: int) -> Tensor:
    """Return the sequence positions that each context parallel rank holds.

    Megatron cuts a sequence into 2 * size chunks; rank r holds chunks r and 2 * size - 1 - r, which
    gives every rank the same causal work.

    Args:
        num_tokens: tokens held by one rank, even.
        context_parallel_size: number of ranks.

    Returns:
        [context_parallel_size, num_tokens] int64.
    """
    chunks = torch.arange(num_tokens * context_parallel_size).chunk(2 * context_parallel_size)
    ranks = range(context_parallel_size)
    return torch.stack([torch.cat((chunks[r], chunks[-1 - r])) for r in ranks])


def current_device() -> torch.device:
    """Return the device the models live on: this process's CUDA device, or the CPU without one."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
