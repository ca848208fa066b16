"""The prompts of a run: read by one rank for all, and told about once."""

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from megatron_gad.checks.tokenizer import check_texts
from megatron_gad.config.run import RunConfig
from megatron_gad.data.cache import fill_cache, read_cache
from megatron_gad.data.chat import ChatCodec
from megatron_gad.data.dataset import load_prompts
from megatron_gad.runtime.run_folder import ask_first_rank
from megatron_gad.training.parallel import Parallel
from megatron_gad.types import Prompt

PROMPTS_FOLDER = "prompts"
MOST_FINGERPRINTED = 10_000

logger = logging.getLogger(__name__)


def load_run_prompts(
    config: RunConfig, codec: ChatCodec, parallel: Parallel, held_out: bool = False
) -> Sequence[Prompt]:
    """Return the prompts to train on, or the held-out ones; none if none are set.

    The first rank reads and tokenises them into the run directory, unless an earlier start did,
    and all ranks map what it wrote. Little data is read by every rank for itself. All ranks call
    this; raises the same ValueError on all of them.
    """
    path = config.data.eval_path if held_out else config.data.path
    if held_out and not path:
        return ()
    folder = Path(config.checkpoint.save) / PROMPTS_FOLDER
    fill = partial(fill_cache, folder, config.data, codec, config.student.path, held_out)
    file = ask_first_rank(parallel, fill)
    loaded = read_cache(file) if file else load_prompts(config.data, codec, path, held_out)
    for problem in check_texts(codec, loaded.prompts):
        raise ValueError(f"{path}: {problem}")
    if parallel.is_writer:
        counts = ", ".join(f"{name} {count}" for name, count in loaded.counts.items())
        for note in (counts, *loaded.notes):
            logger.info("%s: %s", path, note)
        for warning in loaded.warnings:
            logger.warning("%s: %s", path, warning)
    return loaded.prompts


def fingerprint_of(prompts: Sequence[Prompt]) -> str:
    """Return what tells the texts of prompts from others; of many rows, evenly spaced ones count.

    As they were written: how they are tokenised may depend on a library's version, and on the date.
    """
    digest = hashlib.blake2b(str(len(prompts)).encode(), digest_size=16)
    stride = -(-len(prompts) // MOST_FINGERPRINTED)
    for row in range(0, len(prompts), stride):
        prompt = prompts[row]
        text = json.dumps([prompt.index, prompt.messages, prompt.teacher_text], default=str)
        digest.update(text.encode())
    return digest.hexdigest()
