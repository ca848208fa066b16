"""The modules put into Megatron's layer specification where Transformer Engine is not used."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.parallel_state import get_tensor_model_parallel_group
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor
from torch.nn.functional import linear, rms_norm

from megatron_gad.models import autograd
from megatron_gad.models.attention import CoreAttention, RotaryTable


class RMSNorm(torch.nn.Module):
    """Root mean square normalisation over the last axis.

    Megatron's own refuses the inputs of sequence parallelism.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        ones = torch.ones(hidden_size, dtype=config.params_dtype, device=current_device())
        weight: Any = torch.nn.Parameter(ones)
        # Megatron sums the gradients of marked parameters over the tensor parallel ranks.
        weight.sequence_parallel = config.sequence_parallel
        self.weight = weight

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise; hidden: [..., H], any float dtype, same shape and dtype out."""
        if hidden.is_cuda:  # where torch has a fused kernel
            return rms_norm(hidden, self.weight.shape, self.weight, self.eps)
        return autograd.RmsNorm.apply(hidden, self.weight, self.eps)


class GatedMLP(MLP):
    """Megatron's MLP with the gated activation in fewer passes over memory."""

    def __init__(self, config: TransformerConfig) -> None:
        tp_group: Any = get_tensor_model_parallel_group()
        submodules = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
        super().__init__(
            config,
            submodules,
            ffn_hidden_size=config.ffn_hidden_size,
            tp_group=tp_group,
        )

    def forward(
        self, hidden_states: Tensor, per_token_scale: Tensor | None = None, **_unused: object
    ) -> tuple[Tensor, None]:
        """Transform [T, B, H]; returns the result and, as Megatron expects, no bias."""
        assert per_token_scale is None, "per_token_scale belongs to experts"
        gate_up, _ = self.linear_fc1(hidden_states)
        output, _ = self.linear_fc2(autograd.Swiglu.apply(gate_up))
        return output, None


class LastLayer(TransformerLayer):
    """A model's last layer, without the tokens that nobody reads its result at.

    It takes all packed tokens, [N, 1, H], and returns those that PackedLengths says are read.
    """

    def _forward_attention(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *,
        packed_seq_params: Any = None,
        **others: Any,
    ) -> tuple[Tensor, Any]:
        """Return what the MLP takes."""
        if packed_seq_params is None or packed_seq_params.read is None:
            return super()._forward_attention(
                hidden_states, attention_mask, packed_seq_params=packed_seq_params, **others
            )
        attended, _ = self.self_attention(
            self.input_layernorm(hidden_states), None, packed_seq_params=packed_seq_params
        )
        return hidden_states[packed_seq_params.read] + attended, None


def ends_where_read(chunk: Any) -> bool:
    """Return whether a model's chunk ends in a LastLayer, with attention that is made for it."""
    attention = chunk.decoder.layers[-1].self_attention.core_attention
    return isinstance(attention, CoreAttention) and attention.is_last


class Router(TopKRouter):
    """Megatron's router with its one matrix product by torch.

    Megatron's own calls Transformer Engine, also where that is not installed.
    """

    def gating(self, input: Tensor) -> Tensor:
        """Return the logits of the experts, [T, B, experts] float32. input: [T, B, H]."""
        return linear(input.float(), self.weight.float())


def local_block_spec(
    config: TransformerConfig,
    sparse_layers: Sequence[bool],
    inverse_frequencies: Tensor,
    is_last: bool,
) -> TransformerBlockSubmodules:
    """Name the classes that the layers of one stage, and the final norm, are made of.

    Args:
        config: of the model.
        sparse_layers: for each layer of this stage, whether it is a mixture of experts.
        inverse_frequencies: of the rotary embedding, [head_dim / 2] float32.
        is_last: whether the model ends with this stage.
    """
    norm: Any = RMSNorm
    rotary = RotaryTable(inverse_frequencies)
    layers = [_layer_spec(config, rotary, is_sparse) for is_sparse in sparse_layers]
    # Tensor parallel ranks, and experts, would share out the tokens that are left once more.
    if is_last and not sparse_layers[-1] and config.tensor_model_parallel_size == 1:
        layers[-1] = _layer_spec(config, rotary, is_sparse=False, is_last=True)
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=norm)


def _layer_spec(
    config: TransformerConfig, rotary: RotaryTable, is_sparse: bool, is_last: bool = False
) -> ModuleSpec:
    """Name the classes of one layer."""
    head_norm: Any = RMSNorm if config.qk_layernorm else IdentityOp
    add_residual: Any = get_bias_dropout_add
    attention = SelfAttentionSubmodules(
        linear_qkv=ColumnParallelLinear,
        core_attention=partial(CoreAttention, rotary, is_last=is_last),
        linear_proj=RowParallelLinear,
        q_layernorm=head_norm,
        k_layernorm=head_norm,
    )
    # Checkpoints carry the fused modules' names, so that either kind reads the other's.
    fused_names = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
    if not is_sparse:
        fused_names["pre_mlp_layernorm."] = "mlp.linear_fc1.layer_norm_"
    return ModuleSpec(
        module=LastLayer if is_last else TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=attention,
            ),
            self_attn_bda=add_residual,
            pre_mlp_layernorm=RMSNorm,
            mlp=_experts_spec() if is_sparse else GatedMLP,
            mlp_bda=add_residual,
            sharded_state_dict_keys_map=fused_names,
        ),
    )


def _experts_spec() -> ModuleSpec:
    """Name the classes of a mixture: a router and experts that run one after the other."""
    expert = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    experts = ModuleSpec(module=SequentialMLP, submodules=expert)
    submodules = MoESubmodules(experts=experts, router=Router)
    return ModuleSpec(module=MoELayer, submodules=submodules)


def current_device() -> torch.device:
    """Return the device the models live on: this process's CUDA device, or the CPU without one."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
