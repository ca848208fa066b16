"""Parameter counts of the supported models from the numbers in a config.json, exact to the unit."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_gad.models.family_table import FAMILIES
from megatron_gad.planning.published import PUBLISHED, published_config


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder with grouped-query attention and gated feed-forward layers.

    ffn_size: width of a dense feed-forward layer; expert_ffn_size: of one expert.
    num_moe_layers: layers with experts in place of the dense feed-forward; 0 in a dense model.
    is_tied: the output layer is the embedding.
    """

    model_type: str
    num_layers: int
    hidden_size: int
    ffn_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    is_tied: bool
    has_qkv_bias: bool
    has_qk_norm: bool
    num_moe_layers: int = 0
    num_experts: int = 0
    experts_per_token: int = 0
    expert_ffn_size: int = 0

    @property
    def embedding_parameters(self) -> int:
        """Return the entries of the embedding, and of an output layer that is not tied to it."""
        return self.vocab_size * self.hidden_size

    @property
    def attention_matrices(self) -> int:
        """Return the entries of one layer's query, key, value and output matrices."""
        return 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)

    @property
    def attention_biases(self) -> int:
        """Return the entries of one layer's query, key and value biases."""
        width = self.head_dim * (self.num_heads + 2 * self.num_kv_heads)
        return width if self.has_qkv_bias else 0

    @property
    def norm_parameters(self) -> int:
        """Return the entries of one layer's norms, which every tensor-parallel rank holds."""
        return 2 * self.hidden_size + (2 * self.head_dim if self.has_qk_norm else 0)

    @property
    def ffn_parameters(self) -> int:
        """Return the entries of a dense feed-forward layer: gate, up and down."""
        return 3 * self.hidden_size * self.ffn_size

    @property
    def router_parameters(self) -> int:
        """Return the entries of one layer's router."""
        return self.hidden_size * self.num_experts

    @property
    def expert_parameters(self) -> int:
        """Return the entries of one expert."""
        return 3 * self.hidden_size * self.expert_ffn_size

    @property
    def num_dense_layers(self) -> int:
        """Return the layers without experts."""
        return self.num_layers - self.num_moe_layers

    def num_parameters(self, is_scorer: bool = False) -> int:
        """Return all parameters; a scorer has one row in place of the output layer."""
        attention = self.attention_matrices + self.attention_biases + self.norm_parameters
        mixture = self.router_parameters + self.num_experts * self.expert_parameters
        body = (
            self.num_layers * attention
            + self.num_dense_layers * self.ffn_parameters
            + self.num_moe_layers * mixture
        )
        head = 0 if self.is_tied else self.embedding_parameters
        if is_scorer:
            head = self.hidden_size
        return self.embedding_parameters + body + self.hidden_size + head

    def multiplied_parameters(self, is_scorer: bool = False) -> int:
        """Return the entries of matrices that one token is multiplied with.

        The embedding is looked up, not multiplied; of the experts only those that the token is
        sent to count.
        """
        mixture = self.router_parameters + self.experts_per_token * self.expert_parameters
        body = (
            self.num_layers * self.attention_matrices
            + self.num_dense_layers * self.ffn_parameters
            + self.num_moe_layers * mixture
        )
        return body + (self.hidden_size if is_scorer else self.embedding_parameters)


def read_shape(path: Path) -> ModelShape:
    """Read the shape from a config.json, or from the Hugging Face folder that holds one.

    The name of a published model will do if there is no such path here.

    Raises:
        ValueError: the file cannot be read, lacks a size, or is of another family.
    """
    known = None if path.exists() else published_config(str(path))
    if known is not None:
        return shape_from_config(known)
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the model's shape cannot be read from {file} ({error}); give a Hugging Face folder "
            "in student.path, or --model-config with its config.json alone or the name of one of "
            f"{', '.join(PUBLISHED)}"
        ) from error
    return shape_from_config(config)


def shape_from_config(config: Mapping[str, Any]) -> ModelShape:
    """Return the shape that a config.json describes.

    Args:
        config: the file's keys and values; what a family leaves out has its own default.

    Raises:
        ValueError: a size is missing, or the family or one of its options is not supported.
    """
    model_type = config.get("model_type", "")
    family = FAMILIES.get(model_type)
    if family is None:
        supported = ", ".join(repr(name) for name in FAMILIES)
        raise ValueError(f"model_type = {model_type!r} cannot be planned; use one of {supported}")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(f"{key} = True cannot be planned; only False is supported")
    num_layers, num_heads = _size(config, "num_hidden_layers"), _size(config, "num_attention_heads")
    hidden_size = _size(config, "hidden_size")
    return ModelShape(
        model_type=model_type,
        num_layers=num_layers,
        hidden_size=hidden_size,
        ffn_size=_size(config, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_dim=config.get("head_dim") or hidden_size // num_heads,
        vocab_size=_size(config, "vocab_size"),
        is_tied=bool(config.get("tie_word_embeddings", False)),
        has_qkv_bias=family.has_qkv_bias,
        has_qk_norm=family.has_qk_norm,
        **_mixture_sizes(config, num_layers, family.expert_width_key),
    )


def _mixture_sizes(
    config: Mapping[str, Any], num_layers: int, width_key: str | None
) -> dict[str, int]:
    """Return the fields of a shape that describe its experts; none without a key of their width."""
    if width_key is None:
        return {}
    dense = set(config.get("mlp_only_layers") or ())
    step = config.get("decoder_sparse_step", 1)
    sparse = [n for n in range(num_layers) if n not in dense and (n + 1) % step == 0]
    return {
        "num_moe_layers": len(sparse),
        # transformers writes the number under either name.
        "num_experts": config.get("num_local_experts") or _size(config, "num_experts"),
        "experts_per_token": _size(config, "num_experts_per_tok"),
        "expert_ffn_size": _size(config, width_key),
    }


def _size(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} = {value!r} in the model's configuration; it has to be 1 or more")
    return value
