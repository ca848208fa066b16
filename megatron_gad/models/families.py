"""Whether a folder is of a supported model family, and what its config.json says."""

import math
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_gad.models.family_table import FAMILIES, Family
from megatron_gad.models.mixtures import Mixture, check_mixture, mixtral, qwen3_moe

# The scalings that are the same at every length.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
SHORTER = (
    "choose another model, or, for rows that fit into the window, set max_position_embeddings to "
    "its size in config.json"
)
REMEDIES = {
    "layer_types": SHORTER,
    "sliding_window": SHORTER,
    "quantization_config": "use the model's bfloat16 release, or dequantise it",
}

# How the experts of a family are read from its config.json.
MIXTURES = {"qwen3_moe": qwen3_moe, "mixtral": mixtral}


def load_hf_config(folder: str | Path) -> PretrainedConfig:
    """Read the config.json of a Hugging Face folder and check that the model can be built.

    Args:
        folder: a local folder with config.json; nothing is downloaded, and no code of it is run.

    Raises:
        ValueError: there is no config.json, or the family or one of its options is not supported;
            names the value and what is.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json; name the folder of a Hugging Face model")
    try:
        fields, _ = PretrainedConfig.get_config_dict(str(folder), local_files_only=True)
        for key in ("dtype", "torch_dtype"):
            if not isinstance(fields.get(key), str | None):
                raise TypeError(f"{key} = {fields[key]!r} is no name, such as 'bfloat16'")
        config = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (AttributeError, LookupError, TypeError, StrictDataclassError) as error:
        raise ValueError(
            f"{folder}/config.json cannot be read ({error}); take the model's own"
        ) from error
    _check_supported(config)
    return config


def family_of(hf_config: PretrainedConfig) -> Family:
    """Return the row of the table for a configuration.

    Raises:
        ValueError: no such family; lists the supported ones.
    """
    family = FAMILIES.get(hf_config.model_type)
    if family is None:
        supported = ", ".join(f"{name!r} ({row.title})" for name, row in FAMILIES.items())
        raise ValueError(f"model_type = {hf_config.model_type!r} is not supported; use {supported}")
    return family


def mixture_of(hf_config: PretrainedConfig) -> Mixture | None:
    """Return the experts of a model, None where it is dense."""
    family_of(hf_config)
    read = MIXTURES.get(hf_config.model_type)
    return None if read is None else read(hf_config)


def head_dim(hf_config: PretrainedConfig) -> int:
    """Return the width of an attention head; it need not be hidden_size / num_attention_heads."""
    given = getattr(hf_config, "head_dim", None)
    return given or hf_config.hidden_size // hf_config.num_attention_heads


def inverse_frequencies(hf_config: PretrainedConfig) -> torch.Tensor:
    """Return the angle per position of every rotated pair, as transformers' models have it.

    The models themselves are not asked: importing one takes seconds of every rank.

    Returns:
        [head_dim / 2] float32, on the CPU, scaling for long contexts included.
    """
    kind = rope_type(hf_config)
    if kind == "default":
        width = head_dim(hf_config)
        exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
        return 1.0 / (hf_config.rope_parameters["rope_theta"] ** exponents)
    frequencies, _ = ROPE_INIT_FUNCTIONS[kind](hf_config)
    return frequencies.float()


def softmax_scale(hf_config: PretrainedConfig) -> float | None:
    """Return what attention scores are multiplied with; None for 1 / sqrt(head_dim).

    Yarn lengthens rotated queries and keys by a factor, and so scores by its square.
    """
    if rope_type(hf_config) != "yarn":
        return None
    _, factor = ROPE_INIT_FUNCTIONS["yarn"](hf_config)
    return factor**2 / math.sqrt(head_dim(hf_config))


def rope_type(hf_config: PretrainedConfig) -> str:
    """Return the kind of rotary scaling; transformers 5 renamed the field that holds it."""
    parameters = getattr(hf_config, "rope_parameters", None)
    parameters = parameters or getattr(hf_config, "rope_scaling", None) or {}
    return parameters.get("rope_type", "default")


def _check_supported(hf_config: PretrainedConfig) -> None:
    """Raise ValueError for the first option of the configuration that cannot be built."""
    family_of(hf_config)
    layer_types = set(getattr(hf_config, "layer_types", None) or ["full_attention"])
    window = _sliding_window(hf_config)
    if window is None:
        layer_types.discard("sliding_attention")
    found_and_allowed = {
        "hidden_act": (hf_config.hidden_act, ("silu",)),
        "rope_type": (rope_type(hf_config), ROPE_TYPES),
        "attention_bias": (bool(getattr(hf_config, "attention_bias", False)), (False,)),
        "mlp_bias": (bool(getattr(hf_config, "mlp_bias", False)), (False,)),
        "attention_dropout": (float(hf_config.attention_dropout or 0.0), (0.0,)),
        "layer_types": (", ".join(sorted(layer_types)), ("full_attention",)),
        "sliding_window": (window, (None,)),
        "router_jitter_noise": (getattr(hf_config, "router_jitter_noise", 0.0), (0.0,)),
        "quantization_config": (getattr(hf_config, "quantization_config", None), (None,)),
    }
    for key, (value, allowed) in found_and_allowed.items():
        if value not in allowed:
            choices = " or ".join(repr(choice) for choice in allowed)
            remedy = REMEDIES.get(key, "choose another model")
            raise ValueError(
                f"{key} = {value!r} in the config of this {hf_config.model_type!r} model is not "
                f"supported; only {choices} is: {remedy}"
            )
    if rope_type(hf_config) == "yarn" and getattr(hf_config, "head_dim", 0) is None:
        raise ValueError(  # transformers cannot build it either
            f"rope_type = 'yarn' in the config of this {hf_config.model_type!r} model needs its "
            f"head_dim; add head_dim = {head_dim(hf_config)} to config.json"
        )
    mixture = mixture_of(hf_config)
    if mixture is not None:
        check_mixture(mixture)


def _sliding_window(hf_config: PretrainedConfig) -> int | None:
    """Return the window of a model's layers; None: no token has more before it than that."""
    layer_types = getattr(hf_config, "layer_types", None)
    window = getattr(hf_config, "sliding_window", None)
    has_window = layer_types is None or "sliding_attention" in layer_types
    if window is None or not has_window or window >= hf_config.max_position_embeddings:
        return None
    return window
