"""The prompts of a run: read by one rank for all, and where the stage is in them."""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from megatron_gad.checks.inputs import ReadRows, read_instructed, read_rows
from megatron_gad.config.run import RunConfig
from megatron_gad.data.cache import read_cache
from megatron_gad.data.codecs import Codecs
from megatron_gad.data.dataset import LoadedPrompts
from megatron_gad.data.order import PromptOrder, State
from megatron_gad.runtime.run_folder import ask_first_rank
from megatron_gad.runtime.sampler import Ahead
from megatron_gad.training.parallel import Parallel
from megatron_gad.types import Instructed, Prompt

NOTHING: ReadRows = {}
MOST_FINGERPRINTED = 10_000

logger = logging.getLogger(__name__)


class RunData:
    """All prompts of a run, and which of them come next.

    prompts: to train on. eval_prompts: held out. The same on every rank.
    instructions: those that evaluations check. instruction_prompts: what asks for each.
    ahead: rollouts for the next step, whose prompts were taken already; None if there are none.
    """

    def __init__(
        self, config: RunConfig, codecs: Codecs, parallel: Parallel, read: ReadRows = NOTHING
    ) -> None:
        """Load the data. All ranks call it; raises the same ValueError on all of them.

        read: what the first rank has read already.
        """
        self.prompts = load_run_prompts(config, codecs, parallel, read=read)
        self.eval_prompts = load_run_prompts(config, codecs, parallel, held_out=True, read=read)
        size = parallel.data_size
        if config.data.eval_path and len(self.eval_prompts) < size:
            raise ValueError(
                f"data.eval_path = {config.data.eval_path!r} has {len(self.eval_prompts)} "
                f"usable rows for {size} data-parallel ranks; give at least one row per rank"
            )
        self.instructions, self.instruction_prompts = _load_instructions(config, codecs, parallel)
        self._config = config
        self._parallel = parallel
        self.start_stage(0)

    @cached_property
    def fingerprint(self) -> str:
        """What tells the texts of the data from others."""
        return fingerprint_of(self.prompts)

    def start_stage(self, stage_index: int) -> None:
        """Begin the orders of a stage."""
        rows, seed = len(self.prompts), self._config.seed + 1000 * stage_index
        self.order = PromptOrder(rows, seed, self._config.data.shuffle)
        self.extra_order = PromptOrder(rows, seed + 500, shuffle=True)
        self.ahead: Ahead | None = None

    def states(self) -> dict[str, State]:
        """Return where the orders are, without what was taken for rollouts ahead."""
        if self.ahead is not None:
            return self.ahead.orders
        return {"order": self.order.state_dict(), "extra_order": self.extra_order.state_dict()}

    def load_states(self, states: Mapping[str, State]) -> None:
        """Go on where the orders stood."""
        self.order.load_state_dict(states["order"])
        self.extra_order.load_state_dict(states["extra_order"])

    @property
    def epoch(self) -> float:
        """Passes over the data of the stage, with their fraction."""
        order = self.states()["order"]
        return order["epoch"] + order["position"] / order["num_rows"]

    def take(self, count: int, besides: Collection[int] = ()) -> list[Prompt]:
        """Return this data rank's share of the next ``count`` prompts.

        besides: rows that are not to be among them.
        """
        return self._share(self.order.take(count, besides))

    def take_with_extra(
        self, count: int, extra_count: int, num_extra: int
    ) -> tuple[list[Prompt], list[list[Prompt]]]:
        """Return this data rank's share of the next prompts, and of those of each extra step.

        Extra prompts have an order of their own. None comes twice in one call, and none is one of
        the ``count`` if the data suffice: it would teach the discriminator less than another.
        """
        rows, total = self.order.take(count), extra_count * num_extra
        besides = rows if count + total <= len(self.prompts) else ()
        extra = self.extra_order.take(total, besides)
        parts = [extra[i * extra_count : (i + 1) * extra_count] for i in range(num_extra)]
        # Each step's prompts are shared out on their own: its batch is the same on any data ranks.
        return self._share(rows), [self._share(part) for part in parts]

    def _share(self, rows: list[int]) -> list[Prompt]:
        return [self.prompts[row] for row in self._parallel.share(rows)]


def load_run_prompts(
    config: RunConfig,
    codecs: Codecs,
    parallel: Parallel,
    held_out: bool = False,
    read: ReadRows = NOTHING,
) -> Sequence[Prompt]:
    """Return the prompts to train on, or the held-out ones; none if none are set.

    The first rank reads and tokenises them into the run directory, unless an earlier start did,
    and all ranks map what it wrote. Little data it sends to them. All ranks call this; raises the
    same ValueError on all of them.

    read: what the first rank has read already.
    """
    path = config.data.eval_path if held_out else config.data.path
    if held_out and not path:
        return ()

    def read_by_first_rank() -> LoadedPrompts | Path:
        loaded = read.get(held_out) or read_rows(config, codecs, held_out, may_write=True)
        return loaded.file or loaded

    found = ask_first_rank(parallel, read_by_first_rank)
    loaded = read_cache(found) if isinstance(found, Path) else found
    if parallel.is_writer:
        counts = ", ".join(f"{name} {count}" for name, count in loaded.counts.items())
        for note in (counts, *loaded.notes):
            logger.info("%s: %s", path, note)
        for warning in loaded.warnings:
            logger.warning("%s: %s", path, warning)
    return loaded.prompts


def _load_instructions(
    config: RunConfig, codecs: Codecs, parallel: Parallel
) -> tuple[Sequence[Instructed], Sequence[Prompt]]:
    """Return the instructions of the evaluations, and their prompts. All ranks call it."""
    own = config.evaluation
    if not own.instructions:
        return (), ()
    instructions, prompts = ask_first_rank(parallel, lambda: read_instructed(config, codecs))
    if own.interval and len(prompts) < parallel.data_size:
        raise ValueError(
            f"evaluation.instructions = {own.instructions!r} has {len(prompts)} prompts for "
            f"{parallel.data_size} data-parallel ranks; give at least one prompt per rank"
        )
    return instructions, prompts


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
