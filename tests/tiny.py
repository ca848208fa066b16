"""Tiny random Hugging Face model folders for the tests."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.core_model_loading import revert_weight_conversion

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
    "mixtral": (MixtralConfig, MixtralForCausalLM),
}
QWEN3_MOE = {
    "head_dim": 24,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "norm_topk_prob": True,
}


def make_hf_folder(
    path: str | Path,
    family: str = "qwen2",
    vocab_size: int = 97,
    tie: bool = False,
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Write a random model of a family as a Hugging Face folder without a tokenizer.

    Args:
        path: the folder to write.
        family: "llama" (with llama3 rope scaling), "mistral" (without a window), "qwen2", "qwen3"
            (head_dim 24, not 32 / 4), or with two of four experts for a token "qwen3_moe" and
            "mixtral".
        vocab_size: rows of the embedding; 97 is divisible by no tensor parallel size.
        tie: whether the output layer is the embedding.
        seed: of the weights; norms and biases are random too, so that no mistake hides in a one.
        overrides: further fields of the family's configuration.
    """
    config_class, model_class = CLASSES[family]
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    if family == "qwen3":
        shape["head_dim"] = 24
    if family == "qwen3_moe":
        shape |= QWEN3_MOE
    if family == "mistral":
        shape |= {"head_dim": 8, "sliding_window": None}
    if family == "mixtral":
        shape["num_local_experts"] = 4
    if family == "llama":
        shape["rope_parameters"] = LLAMA3_ROPE
    config = config_class(
        vocab_size=vocab_size,
        tie_word_embeddings=tie,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        **(shape | overrides),
    )
    model = model_class(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1.0 + 0.3 * noise if name.endswith("norm.weight") else 0.2 * noise)
    model.save_pretrained(str(path))
    return Path(path)


def hub_tensors(model: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors that belong to a module's parameters the names that transformers saves under.

    They differ where a module holds all experts of a layer in one tensor.
    """
    return revert_weight_conversion(model, {name: v.detach() for name, v in values.items()})
