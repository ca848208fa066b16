"""Mixtures of experts: their shape as a Hugging Face config gives it, and their tensors' names.

The names are those of the folders on the Hub, one tensor per expert and matrix, which transformers
writes and inference engines read; the modules of transformers 5 hold the experts of a layer in two
tensors under names of their own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from transformers import PretrainedConfig

from megatron_gad.models.family_table import FAMILIES

FUSED_GATE_UP = ".mlp.experts.gate_up_proj"
FUSED_DOWN = ".mlp.experts.down_proj"
ROUTER = ".mlp.gate.weight"


@dataclass(frozen=True)
class Mixture:
    """The experts that some layers have in place of one gated feed-forward layer.

    num_experts: of a layer.
    experts_per_token: those that a token is sent to.
    expert_width: inner width of an expert.
    normalises: whether the weights of a token's experts add up to 1.
    sparse_layers: for every layer, whether it has experts.
    block: what the part of a layer is called that holds router and experts.
    matrices: what the gate, up and down projections of an expert are called.
    width_key: the key of expert_width in the config.
    """

    num_experts: int
    experts_per_token: int
    expert_width: int
    normalises: bool
    sparse_layers: tuple[bool, ...]
    block: str
    matrices: tuple[str, str, str]
    width_key: str

    def router_name(self) -> str:
        """Return the name of a layer's router."""
        return f"{self.block}.gate.weight"

    def expert_names(self, expert: int) -> tuple[str, str, str]:
        """Return the names of an expert's gate, up and down projections within a layer."""
        gate, up, down = (f"{self.block}.experts.{expert}.{name}.weight" for name in self.matrices)
        return gate, up, down


def qwen3_moe(hf_config: PretrainedConfig) -> Mixture:
    """Read the experts of a Qwen3-MoE model, which may have dense layers among the sparse ones."""
    layers = range(hf_config.num_hidden_layers)
    step, dense = hf_config.decoder_sparse_step, hf_config.mlp_only_layers or ()
    width_key = _width_key(hf_config)
    return Mixture(
        num_experts=hf_config.num_experts,
        experts_per_token=hf_config.num_experts_per_tok,
        expert_width=getattr(hf_config, width_key),
        normalises=hf_config.norm_topk_prob,
        sparse_layers=tuple(n not in dense and (n + 1) % step == 0 for n in layers),
        block="mlp",
        matrices=("gate_proj", "up_proj", "down_proj"),
        width_key=width_key,
    )


def mixtral(hf_config: PretrainedConfig) -> Mixture:
    """Read the experts of a Mixtral model, which all layers have."""
    width_key = _width_key(hf_config)
    return Mixture(
        num_experts=hf_config.num_local_experts,
        experts_per_token=hf_config.num_experts_per_tok,
        expert_width=getattr(hf_config, width_key),
        normalises=True,
        sparse_layers=(True,) * hf_config.num_hidden_layers,
        block="block_sparse_moe",
        matrices=("w1", "w3", "w2"),
        width_key=width_key,
    )


def _width_key(hf_config: PretrainedConfig) -> str:
    key = FAMILIES[hf_config.model_type].expert_width_key
    assert key is not None, hf_config.model_type
    return key


def under_hub_names(
    name: str, parameter: Tensor, mixture: Mixture | None
) -> Iterator[tuple[str, Tensor]]:
    """Yield a parameter of a transformers module as views under the names of the Hub.

    Args:
        name: of the parameter in the module.
        parameter: with the experts of a layer, [experts, 2 * width, hidden] (gate over up) or
            [experts, hidden, width]; any other is yielded as it is.
        mixture: of the model; None in a dense one.
    """
    if mixture is None or not name.endswith((FUSED_GATE_UP, FUSED_DOWN, ROUTER)):
        yield name, parameter
        return
    layer = name[: name.index(".mlp.") + 1]
    if name.endswith(ROUTER):
        yield layer + mixture.router_name(), parameter
        return
    for expert, matrix in enumerate(parameter):
        gate, up, down = (layer + part for part in mixture.expert_names(expert))
        if name.endswith(FUSED_DOWN):
            yield down, matrix
        else:
            yield from zip((gate, up), matrix.chunk(2), strict=True)


def check_mixture(mixture: Mixture) -> None:
    """Check that the experts of a model can be built.

    Raises:
        ValueError: names the key of the config and what is allowed.
    """
    if not any(mixture.sparse_layers):
        raise ValueError(
            f"num_experts = {mixture.num_experts}, but decoder_sparse_step and mlp_only_layers "
            "leave no layer with experts; use the dense model of the family"
        )
    if not 0 < mixture.experts_per_token <= mixture.num_experts:
        raise ValueError(
            f"num_experts_per_tok = {mixture.experts_per_token} is not between 1 and the "
            f"{mixture.num_experts} experts of the model; correct its config.json"
        )
    if mixture.normalises and mixture.experts_per_token == 1:
        raise ValueError(
            "num_experts_per_tok = 1 with weights that add up to 1 gives the router no gradient; "
            "choose another model, or norm_topk_prob = False"
        )
