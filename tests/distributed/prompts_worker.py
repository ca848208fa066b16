"""Loads the prompts of a run; started on two ranks.

``main`` takes the folder with the configuration, into which the results go.
"""

from dataclasses import replace
from pathlib import Path

import torch

from megatron_gad.checks.inputs import read_all_rows, read_codecs
from megatron_gad.config.run import RunConfig
from megatron_gad.config.toml import read_toml
from megatron_gad.data.stored import StoredPrompts
from megatron_gad.runtime.run_data import load_run_prompts
from megatron_gad.training.parallel import ask_first_process, initialize, meet, shut_down
from tests.distributed.workers import save


def read_before(folder: Path) -> None:
    """Write down what every rank has before there is a process group, or why it goes no further."""
    config = read_toml(folder / "run.toml", RunConfig)
    codecs = read_codecs(config)
    store = meet()
    mine: dict = {"error": "", "read": None}
    try:
        read = ask_first_process(store, lambda: read_all_rows(config, codecs))
        mine["read"] = None if read is None else {k: tuple(v.prompts) for k, v in read.items()}
    except ValueError as error:
        mine["error"] = str(error)
        read = None
    mine["has_group"] = torch.distributed.is_initialized()
    place = initialize(config.parallel, config.seed, store)
    if not place.is_writer:  # which would find nothing if it read for itself
        config = replace(config, data=replace(config.data, path="nowhere.jsonl"))
    if not mine["error"]:
        mine["prompts"] = tuple(load_run_prompts(config, codecs, place, read=read or {}))
    save(folder / "results.pt", place.gather_over_world(mine))
    shut_down()


def main(folder: Path, expects_error: bool) -> None:
    """Write down what every rank gets."""
    config = read_toml(folder / "run.toml", RunConfig)
    place = initialize(config.parallel, config.seed)
    codecs = read_codecs(config)
    mine: dict = {}
    try:
        prompts = load_run_prompts(config, codecs, place)
        mine |= {"is_stored": isinstance(prompts, StoredPrompts), "prompts": tuple(prompts)}
        mine["held_out"] = load_run_prompts(config, codecs, place, held_out=True)
    except ValueError as error:
        assert expects_error, error
        mine["error"] = str(error)
    save(folder / "results.pt", place.gather_over_world(mine))
    shut_down()
