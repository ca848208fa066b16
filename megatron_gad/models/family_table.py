"""What the supported model families have that others have not; without torch, for the planner."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """What one model_type has that another has not; sizes are in its config.json.

    class_prefix: of its classes in transformers.
    expert_width_key: what the width of an expert is called in config.json; None in a dense family.
    """

    title: str
    class_prefix: str
    has_qkv_bias: bool
    has_qk_norm: bool
    expert_width_key: str | None = None


FAMILIES = {
    "llama": Family("Llama 3.x", "Llama", False, False),
    "mistral": Family("Mistral", "Mistral", False, False),
    "qwen2": Family("Qwen2 and Qwen2.5", "Qwen2", True, False),
    "qwen3": Family("Qwen3 (dense)", "Qwen3", False, True),
    "qwen3_moe": Family("Qwen3-MoE", "Qwen3Moe", False, True, "moe_intermediate_size"),
    "mixtral": Family("Mixtral", "Mixtral", False, False, "intermediate_size"),
}
