"""Rollouts that wait for the next step, in a checkpoint and back."""

import json
import logging
from collections.abc import Sequence
from itertools import chain
from typing import Any

from megatron_gad.data.order import State
from megatron_gad.engines.replay import as_record, from_record
from megatron_gad.files import to_json
from megatron_gad.runtime.run import Run
from megatron_gad.runtime.sampler import Ahead, Request
from megatron_gad.types import Group

logger = logging.getLogger(__name__)


def ahead_state(run: Run) -> list[list[str]]:
    """Return the rollouts that wait for the next step, of all data ranks; waits for the engine.

    One list a sampling, one line of JSON a group.
    """
    if run.data.ahead is None:
        return []
    return [
        [to_json(as_record(group)) for group in chain.from_iterable(shares)]
        for shares in map(run.parallel.gather_over_data, run.data.ahead.result())
    ]


def restore_ahead(
    run: Run, requests: Sequence[Request], orders: dict[str, State], state: list[list[str]]
) -> None:
    """Let the next step take the rollouts of a checkpoint, if they are those it would ask for.

    If a setting changed, all data ranks sample the same prompts anew instead.

    orders: of the data, from before the requests took their prompts.
    """
    saved = [[json.loads(line) for line in lines] for lines in state]
    stop_ids = run.codec.stop_ids
    found = [_find(*pair, stop_ids) for pair in zip(requests, saved, strict=False)]
    groups = [run.sampler.with_text(each) for each in found if each is not None]
    fits = len(groups) == len(requests) == len(saved)
    if all(run.parallel.gather_over_data(fits)):
        run.data.ahead = Ahead(orders, lambda: groups)
        return
    run.data.load_states(orders)
    if run.parallel.is_writer:
        logger.warning("the checkpoint's waiting rollouts do not fit the settings: sampled anew")


def _find(
    request: Request, records: list[dict[str, Any]], stop_ids: Sequence[int]
) -> list[Group] | None:
    """Return the recorded groups that a request asks for, None if some are not there."""
    by_row = {record["prompt_index"]: record for record in records}
    wanted = [by_row.get(prompt.index) for prompt in request.prompts]
    fitting = [
        record
        for record in wanted
        if record is not None and len(record["rollouts"]) == request.sampling.num_samples
    ]
    if len(fitting) < len(wanted):
        return None
    pairs = zip(fitting, request.prompts, strict=True)
    return [from_record(record, prompt, stop_ids, "the checkpoint") for record, prompt in pairs]
