"""The game that ``against_trl`` plays on both sides: a model, a tokenizer, prompts, answers.

Neither side's framework is imported, so that each finds it in an environment of its own.
"""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

END, PAD, USER, ASSISTANT = "</s>", "<pad>", "<user>", "<assistant>"
TEMPLATE = (
    "{% for turn in messages %}{% if turn.role == 'user' %}<user> {{ turn.content }} "
    "{% else %}<assistant> {{ turn.content }}</s> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
LEARNING_RATE, KL_COEF = 1e-6, 0.001


@dataclass(frozen=True)
class Game:
    """One step: prompts x rollouts of prompt_tokens + response_tokens, a Mistral of this shape."""

    prompts: int
    rollouts: int
    prompt_tokens: int
    response_tokens: int
    layers: int = 4
    hidden: int = 256
    ffn: int = 704
    vocab: int = 4096

    @property
    def num_rows(self) -> int:
        """Rollouts of a step."""
        return self.prompts * self.rollouts

    def save(self, folder: Path, num_prompts: int) -> None:
        """Write FOLDER/model, FOLDER/train.jsonl and FOLDER/game.json."""
        _make_tokenizer(self.vocab).save_pretrained(folder / "model")
        torch.manual_seed(0)
        config = MistralConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.ffn,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 32,
            num_key_value_heads=self.hidden // 64,
            max_position_embeddings=1024,
            sliding_window=None,
            tie_word_embeddings=False,
            eos_token_id=0,
            pad_token_id=1,
        )
        MistralForCausalLM(config).save_pretrained(folder / "model")
        (folder / "game.json").write_text(json.dumps(asdict(self)))
        draw = random.Random(0)

        def words(count: int) -> str:
            return " ".join(f"w{draw.randrange(4, self.vocab)}" for _ in range(count))

        rows = [
            # Besides its words, a prompt has two headers, and a response its end.
            {
                "content": [{"role": "user", "content": words(self.prompt_tokens - 2)}],
                "teacher_response": words(self.response_tokens - 1),
            }
            for _ in range(num_prompts)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "train.jsonl").write_text(lines)


def read_game(folder: Path) -> Game:
    """Return what ``Game.save`` wrote."""
    return Game(**json.loads((folder / "game.json").read_text()))


def _make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Make one that has a token for every word."""
    names = [END, PAD, USER, ASSISTANT, *(f"w{number}" for number in range(4, vocab_size))]
    words = Tokenizer(models.WordLevel(dict(zip(names, range(vocab_size), strict=True)), PAD))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [USER, ASSISTANT]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer
