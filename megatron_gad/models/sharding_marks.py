"""Says on every parameter whether tensor-parallel ranks hold parts of it or copies."""

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.moe.moe_layer import MoELayer

CUT_AXIS = {ColumnParallelLinear: 0, VocabParallelEmbedding: 0, RowParallelLinear: 1}


def mark_sharded_weights(chunk: torch.nn.Module) -> None:
    """Set Megatron's attributes on the weights that are cut over tensor-parallel ranks.

    Megatron sets them while it initialises weights, which is left out where weights are loaded.
    Without them the gradient norm counts the first rank's part only, and clipping is wrong.
    """
    for module in chunk.modules():
        axis = CUT_AXIS.get(type(module))
        weight = getattr(module, "weight", None)
        if axis is None or weight is None or hasattr(weight, "tensor_model_parallel"):
            continue
        set_tensor_model_parallel_attributes(weight, True, axis, 1)


def mark_experts(chunk: torch.nn.Module) -> None:
    """Have the gradients of experts summed over the ranks that hold the same experts.

    Megatron says so of its own where expert_model_parallel_size is above 1 only. At 1 the ranks
    with the same part of an expert are still others than those with the same part of a layer
    wherever the two tensor parallel sizes differ; and the optimizer keeps experts in a part of its
    own, which has to be there at every layout for checkpoints to pass between them.
    """
    for module in chunk.modules():
        if isinstance(module, MoELayer):
            for parameter in module.experts.parameters():
                parameter.allreduce = False
