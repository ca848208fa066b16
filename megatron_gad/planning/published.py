"""Shapes of published models, for plans that need nothing else of a model."""

from typing import Any

# hidden size, FFN size, layers, heads, key/value heads, size of a head, rows of the embedding,
# whether the head is tied to it; from the models' config.json.
_QWEN2 = {
    "Qwen2.5-0.5B": (896, 4864, 24, 14, 2, 64, 151_936, True),
    "Qwen2.5-1.5B": (1536, 8960, 28, 12, 2, 128, 151_936, True),
    "Qwen2.5-3B": (2048, 11_008, 36, 16, 2, 128, 151_936, True),
    "Qwen2.5-7B": (3584, 18_944, 28, 28, 4, 128, 152_064, False),
    "Qwen2.5-14B": (5120, 13_824, 48, 40, 8, 128, 152_064, False),
    "Qwen2.5-32B": (5120, 27_648, 64, 40, 8, 128, 152_064, False),
    "Qwen2.5-72B": (8192, 29_568, 80, 64, 8, 128, 152_064, False),
}
_QWEN3 = {
    "Qwen3-0.6B": (1024, 3072, 28, 16, 8, 128, 151_936, True),
    "Qwen3-1.7B": (2048, 6144, 28, 16, 8, 128, 151_936, True),
    "Qwen3-4B": (2560, 9728, 36, 32, 8, 128, 151_936, True),
    "Qwen3-8B": (4096, 12_288, 36, 32, 8, 128, 151_936, False),
    "Qwen3-14B": (5120, 17_408, 40, 40, 8, 128, 151_936, False),
    "Qwen3-32B": (5120, 25_600, 64, 64, 8, 128, 151_936, False),
}
_LLAMA = {
    "Llama-3.1-8B": (4096, 14_336, 32, 32, 8, 128, 128_256, False),
    "Llama-3.1-70B": (8192, 28_672, 80, 64, 8, 128, 128_256, False),
    "Llama-3.2-1B": (2048, 8192, 16, 32, 8, 64, 128_256, True),
    "Llama-3.2-3B": (3072, 8192, 28, 24, 8, 128, 128_256, True),
    "SmolLM2-135M": (576, 1536, 30, 9, 3, 64, 49_152, True),
}
_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings"),
)
PUBLISHED: dict[str, dict[str, Any]] = {
    name: {"model_type": family, **dict(zip(_KEYS, sizes, strict=True))}
    for family, models in (("qwen2", _QWEN2), ("qwen3", _QWEN3), ("llama", _LLAMA))
    for name, sizes in models.items()
}


def published_config(path: str) -> dict[str, Any] | None:
    """Return what config.json of a published model says of its shape; None if it is not listed.

    path: the model's name on the hub, a folder of that name that is not here, or the name alone;
        ``@REVISION`` and "-Instruct" do not count.
    """
    name = path.partition("@")[0].rstrip("/").rpartition("/")[2].removesuffix("-Instruct")
    return PUBLISHED.get(name)
