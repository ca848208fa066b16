"""Prompts that were read and tokenised once for a run directory, as long as nothing changed."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from megatron_gad.config.data import DataConfig
from megatron_gad.data.chat import ChatCodec
from megatron_gad.data.dataset import HUB, LoadedPrompts, load_prompts
from megatron_gad.data.rows import find_files
from megatron_gad.data.stored import StoredPrompts, write_prompts
from megatron_gad.files import replace_text, replacing
from megatron_gad.types import Prompt

# Less is read as fast as pyarrow is imported.
MIN_BYTES = 8_000_000
# What of a Hugging Face folder a codec may read.
TOKENIZER_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")
LIBRARIES = ("transformers", "tokenizers", "jinja2")


def fill_cache(
    folder: Path, config: DataConfig, codec: ChatCodec, hf_folder: str, held_out: bool
) -> Path | None:
    """Return the file of a data set's prompts, and write it unless it is there.

    Files of other contents go. None: the data is on the Hub, or too little to be worth it.

    hf_folder: where the codec is from.

    Raises ValueError as ``load_prompts`` does.
    """
    path = config.eval_path if held_out else config.path
    if not path or path.startswith(HUB):
        return None
    if sum(file.stat().st_size for file in find_files(Path(path), held_out).used) < MIN_BYTES:
        return None
    name = "eval" if held_out else "train"
    file = folder / f"{name}-{_fingerprint(config, hf_folder, path, held_out)}.arrow"
    facts = file.with_suffix(".json")
    if facts.exists():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{name}-*"):
        old.unlink()

    def keep(prompts: Iterator[Prompt]) -> StoredPrompts:
        with replacing(file) as draft:
            write_prompts(draft, prompts)
        return StoredPrompts(file)

    loaded = load_prompts(config, codec, path, held_out, keep)
    # Last: where it is, all is.
    said = {"counts": loaded.counts, "notes": loaded.notes, "warnings": loaded.warnings}
    replace_text(facts, json.dumps(said, indent=1))
    return file


def read_cache(file: Path) -> LoadedPrompts:
    """Return what ``fill_cache`` wrote."""
    said = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    notes, warnings = tuple(said["notes"]), tuple(said["warnings"])
    return LoadedPrompts(StoredPrompts(file), said["counts"], notes, warnings)


def _fingerprint(config: DataConfig, hf_folder: str, path: str, held_out: bool) -> str:
    """Return what tells everything apart that the prompts depend on."""
    files = find_files(Path(path), held_out)
    tokenizer = sorted(file for kind in TOKENIZER_FILES for file in Path(hf_folder).glob(kind))
    parts = [
        asdict(config) | {"eval_path": "", "path": path, "shuffle": True},
        [_stamp(file) for file in (*files.used, *files.left_out, *tokenizer)],
        [version(library) for library in LIBRARIES],
        [file.read_text(encoding="utf-8") for file in sorted(Path(__file__).parent.glob("*.py"))],
    ]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


def _stamp(file: Path) -> tuple[str, int, int]:
    found = file.stat()
    return str(file), found.st_size, found.st_mtime_ns
