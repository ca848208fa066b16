"""The prompts of a run: read by one rank for all, and told about once."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from megatron_gad.checks.inputs import ReadRows, read_rows
from megatron_gad.config.run import RunConfig
from megatron_gad.data.cache import read_cache
from megatron_gad.data.codecs import Codecs
from megatron_gad.data.dataset import LoadedPrompts
from megatron_gad.runtime.run_folder import ask_first_rank
from megatron_gad.training.parallel import Parallel
from megatron_gad.types import Prompt

NOTHING: ReadRows = {}
MOST_FINGERPRINTED = 10_000

logger = logging.getLogger(__name__)


def load_run_prompts(
    config: RunConfig,
    codecs: Codecs,
    parallel: Parallel,
    held_out: bool = False,
    read: ReadRows = NOTHING,
) -> Sequence[Prompt]:
    """Return the prompts to train on, or the held-out ones; none if none are set.

    The first rank reads and tokenises them into the run directory, unless an earlier start did,
    and all ranks map what it wrote. Little data is read by every rank for itself. All ranks call
    this; raises the same ValueError on all of them.

    read: what the first rank has read already.
    """
    path = config.data.eval_path if held_out else config.data.path
    if held_out and not path:
        return ()
    mine: list[LoadedPrompts] = [read[held_out]] if held_out in read else []

    def file_of_first_rank() -> Path | None:
        if not mine:
            mine.append(read_rows(config, codecs, held_out, may_write=True))
        return mine[0].file

    file = ask_first_rank(parallel, file_of_first_rank)
    if not mine:
        mine.append(read_cache(file) if file else read_rows(config, codecs, held_out))
    (loaded,) = mine
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
