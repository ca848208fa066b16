"""The names and shapes of a model's Hugging Face tensors, as its config.json means them."""

from collections.abc import Iterator

from transformers import PretrainedConfig

from megatron_gad.models.families import family_of, head_dim, mixture_of
from megatron_gad.models.mixtures import Mixture

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"
SCORE_HEAD = "score.weight"
DENSE = ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")
# A tensor in the files of older models that follows from the config.
DERIVED = "rotary_emb.inv_freq"

Shape = tuple[int, ...]


def layer_names(hf_config: PretrainedConfig) -> list[str]:
    """List the names of all tensors of a model but those of the head, in order."""
    return list(body_shapes(hf_config))


def body_shapes(hf_config: PretrainedConfig) -> dict[str, Shape]:
    """Return name -> shape of all tensors of a model but those of the head, in order."""
    width = hf_config.hidden_size
    mixture = mixture_of(hf_config)
    shapes: dict[str, Shape] = {EMBEDDING: (hf_config.vocab_size, width)}
    attention = dict(_attention_shapes(hf_config))
    for layer in range(hf_config.num_hidden_layers):
        if mixture is not None and mixture.sparse_layers[layer]:
            feed_forward = dict(_expert_shapes(mixture, width))
        else:
            feed_forward = dict(_feed_forward_shapes(DENSE, width, hf_config.intermediate_size))
        layer_shapes = attention | feed_forward
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in layer_shapes.items()}
    return shapes | {FINAL_NORM: (width,)}


def head_shapes(hf_config: PretrainedConfig) -> dict[str, Shape]:
    """Return name -> shape of the two heads that a model can have."""
    width = hf_config.hidden_size
    return {LM_HEAD: (hf_config.vocab_size, width), SCORE_HEAD: (1, width)}


def _attention_shapes(hf_config: PretrainedConfig) -> Iterator[tuple[str, Shape]]:
    """Yield the tensors of a layer that are not its feed-forward part's, named within the layer."""
    family, width, head = family_of(hf_config), hf_config.hidden_size, head_dim(hf_config)
    query, key = hf_config.num_attention_heads * head, hf_config.num_key_value_heads * head
    rows = {"q": query, "k": key, "v": key}
    yield "input_layernorm.weight", (width,)
    for which, size in rows.items():
        yield f"self_attn.{which}_proj.weight", (size, width)
    if family.has_qkv_bias:
        for which, size in rows.items():
            yield f"self_attn.{which}_proj.bias", (size,)
    if family.has_qk_norm:
        for which in "qk":
            yield f"self_attn.{which}_norm.weight", (head,)
    yield "self_attn.o_proj.weight", (width, query)
    yield "post_attention_layernorm.weight", (width,)


def _expert_shapes(mixture: Mixture, width: int) -> Iterator[tuple[str, Shape]]:
    """Yield the tensors of a mixture, named within the layer."""
    yield mixture.router_name(), (mixture.num_experts, width)
    for expert in range(mixture.num_experts):
        names = mixture.expert_names(expert)
        yield from _feed_forward_shapes(names, width, mixture.expert_width)


def _feed_forward_shapes(
    names: tuple[str, str, str], width: int, inner: int
) -> Iterator[tuple[str, Shape]]:
    """Yield the gate, up and down projections."""
    gate, up, down = names
    yield from ((gate, (inner, width)), (up, (inner, width)), (down, (width, inner)))
