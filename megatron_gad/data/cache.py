"""Prompts that were read and tokenised once for a run directory, as long as nothing changed."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from megatron_gad.config.data import DataConfig
from megatron_gad.data.codecs import Codecs
from megatron_gad.data.dataset import HUB, LoadedPrompts, load_prompts
from megatron_gad.data.rows import find_files
from megatron_gad.data.stored import StoredPrompts, write_prompts
from megatron_gad.files import replace_text, replacing
from megatron_gad.types import Prompt

# Less is read as fast as pyarrow is imported, and sent to all ranks.
MIN_BYTES = 2_000_000
# What of a Hugging Face folder a codec may read.
TOKENIZER_FILES = ("*.json", "*.jinja", "*/*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")
LIBRARIES = ("transformers", "tokenizers", "jinja2")


def fill_cache(folder: Path, config: DataConfig, codecs: Codecs, held_out: bool) -> Path | None:
    """Return the file of a data set's prompts, and write it unless it is there.

    Files of other contents go. None: the files are too small to be worth it. A data set of the Hub
    is always worth it: its rows stay those that the run began with.

    Raises ValueError as ``load_prompts`` does.
    """
    file = _cache_file(folder, config, codecs, held_out)
    if file is None or file.with_suffix(".json").exists():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{_name(held_out)}-*"):
        old.unlink()

    def keep(prompts: Iterator[Prompt]) -> StoredPrompts:
        with replacing(file) as draft:
            write_prompts(draft, prompts)
        return StoredPrompts(file)

    path = _path(config, held_out)
    loaded = load_prompts(config, codecs.student, path, held_out, keep, codecs.scorer)
    # Last: where it is, all is.
    said = {"counts": loaded.counts, "notes": loaded.notes, "warnings": loaded.warnings}
    replace_text(file.with_suffix(".json"), json.dumps(said, indent=1))
    return file


def find_cache(folder: Path, config: DataConfig, codecs: Codecs, held_out: bool) -> Path | None:
    """Return the file of a data set's prompts if an earlier start wrote it."""
    file = _cache_file(folder, config, codecs, held_out)
    return file if file is not None and file.with_suffix(".json").exists() else None


def read_cache(file: Path) -> LoadedPrompts:
    """Return what ``fill_cache`` wrote."""
    said = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    notes, warnings = tuple(said["notes"]), tuple(said["warnings"])
    return LoadedPrompts(StoredPrompts(file), said["counts"], notes, warnings)


def _path(config: DataConfig, held_out: bool) -> str:
    return config.eval_path if held_out else config.path


def _name(held_out: bool) -> str:
    return "eval" if held_out else "train"


def _cache_file(folder: Path, config: DataConfig, codecs: Codecs, held_out: bool) -> Path | None:
    """Return where the prompts of a data set are kept; None if they are not."""
    path = _path(config, held_out)
    if not path:
        return None
    files: list[Path] = []
    if not path.startswith(HUB):
        found = find_files(Path(path), held_out)
        if sum(file.stat().st_size for file in found.used) < MIN_BYTES:
            return None
        files = [*found.used, *found.left_out]
    fingerprint = _fingerprint(config, codecs, path, files)
    return folder / f"{_name(held_out)}-{fingerprint}.arrow"


def _fingerprint(config: DataConfig, codecs: Codecs, path: str, files: list[Path]) -> str:
    """Return what tells everything apart that the prompts depend on."""
    tokenizers = [
        file
        for folder in codecs.folders
        for file in sorted(each for kind in TOKENIZER_FILES for each in Path(folder).glob(kind))
    ]
    parts = [
        asdict(config) | {"eval_path": "", "path": path, "shuffle": True},
        [_stamp(file) for file in (*files, *tokenizers)],
        [version(library) for library in LIBRARIES],
        [file.read_text(encoding="utf-8") for file in sorted(Path(__file__).parent.glob("*.py"))],
    ]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


def _stamp(file: Path) -> tuple[str, int, int]:
    found = file.stat()
    return str(file), found.st_size, found.st_mtime_ns
