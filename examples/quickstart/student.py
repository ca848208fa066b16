"""The untrained student: a tiny Qwen2 as a Hugging Face folder, tokenizer included."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from examples.quickstart.robot_turns import all_prompts, teacher_answer
from examples.quickstart.tokenizer import END, PAD, SPECIAL_TOKENS, make_tokenizer


@dataclass(frozen=True)
class StudentShape:
    """How large the student is, and how its weights are drawn.

    mlp_width: width inside a feed-forward block.
    init_std: standard deviation of every weight matrix; far above the 0.02 of large models,
        whose signal would vanish at this width.
    is_tied: the output layer is the embedding.
    """

    num_layers: int = 3
    width: int = 64
    num_heads: int = 4
    num_kv_heads: int = 4
    mlp_width: int = 176
    init_std: float = 0.1
    is_tied: bool = False


def make_student(
    folder: str | Path,
    seed: int,
    shape: StudentShape | None = None,
    texts: Sequence[str] = (),
) -> Path:
    """Write config.json, float32 safetensors, tokenizer and generation_config.json; return folder.

    The same seed and shape give the same bytes.

    texts: those that hold every word of the task; by default the robot turns'.
    """
    shape = shape or StudentShape()
    tokenizer = make_tokenizer(texts or task_texts())
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=tokenizer.model_max_length,
        initializer_range=shape.init_std,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=shape.is_tied,
        bos_token_id=None,
        eos_token_id=SPECIAL_TOKENS.index(END),
        pad_token_id=SPECIAL_TOKENS.index(PAD),
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config).float()
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return Path(folder)


def task_texts() -> list[str]:
    """Return every prompt and an answer to it; together they hold every word of the task."""
    prompts = all_prompts()
    return prompts + [teacher_answer(prompt, seed=0) for prompt in prompts]
