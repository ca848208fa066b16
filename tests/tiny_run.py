"""A tiny run for the tests: a model, a tokenizer, data and a configuration without a mistake."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from megatron_gad.config.run import RunConfig
from megatron_gad.config.toml import parse_toml
from tests.tiny import make_hf_folder
from tests.tiny_tokenizer import make_tokenizer

ROWS = '{"content": "face west", "teacher_response": "west"}\n' * 20


def make_run(folder: Path) -> RunConfig:
    """Write student/ and train.jsonl into a folder and return the configuration that uses them."""
    make_hf_folder(folder / "student", vocab_size=384, max_position_embeddings=256)
    make_tokenizer(folder / "student")
    (folder / "train.jsonl").write_text(ROWS)
    text = f"""
        [checkpoint]
        save = "{folder}/out"
        [data]
        path = "{folder}/train.jsonl"
        max_prompt_tokens = 128
        max_response_tokens = 64
        [student]
        path = "{folder}/student"
        [warmup]
        prompts_per_step = 8
        [adversarial]
        prompts_per_step = 8
    """
    return parse_toml(text, RunConfig, source="good.toml")


def changed(config: RunConfig, change: Mapping[str, Mapping[str, object]]) -> RunConfig:
    """Return a configuration with other values of some sections' keys."""
    sections = {name: replace(getattr(config, name), **keys) for name, keys in change.items()}
    return replace(config, **sections)
