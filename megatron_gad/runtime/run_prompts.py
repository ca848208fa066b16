"""The prompts of a run: read by one rank for all, and told about once."""

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
