"""The models and batches of ``cpu_step``."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from megatron_gad.types import Batch


@dataclass(frozen=True)
class Size:
    """A Qwen2 shape, and the rows of one step: all as long, a quarter of them prompt."""

    layers: int
    hidden: int
    ffn: int
    vocab: int
    rows: int
    tokens: int

    def batch(self) -> Batch:
        """Return the rows of a step, without padding."""
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(1, self.vocab, (self.rows, self.tokens), generator=generator)
        mask = torch.arange(self.tokens).expand_as(tokens) >= self.tokens // 4
        return Batch(tokens, torch.full((self.rows,), self.tokens), mask)

    def save(self, folder: Path) -> int:
        """Write a model of this shape with random weights; return its number of parameters."""
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.ffn,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 32,
            num_key_value_heads=max(2, self.hidden // 64),
            max_position_embeddings=self.tokens,
            tie_word_embeddings=False,
        )
        model = Qwen2ForCausalLM(config)
        model.save_pretrained(folder)
        return sum(parameter.numel() for parameter in model.parameters())


SIZES = {
    "3x64": Size(layers=3, hidden=64, ffn=192, vocab=512, rows=32, tokens=64),
    "4x256": Size(layers=4, hidden=256, ffn=704, vocab=4096, rows=8, tokens=128),
    "10x640": Size(layers=10, hidden=640, ffn=1728, vocab=16_384, rows=4, tokens=256),
}
