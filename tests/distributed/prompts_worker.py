"""Loads the prompts of a run; started on two ranks.

``main`` takes the folder with the configuration, into which the results go.
"""

from pathlib import Path

from megatron_gad.config.run import RunConfig
from megatron_gad.config.toml import read_toml
from megatron_gad.data.chat import ChatCodec
from megatron_gad.data.stored import StoredPrompts
from megatron_gad.runtime.run_prompts import load_run_prompts
from megatron_gad.training.parallel import initialize, shut_down
from tests.distributed.workers import save


def main(folder: Path, expects_error: bool) -> None:
    """Write down what every rank gets."""
    config = read_toml(folder / "run.toml", RunConfig)
    place = initialize(config.parallel, config.seed)
    codec = ChatCodec.from_config(config.student.path, config.data)
    mine: dict = {}
    try:
        prompts = load_run_prompts(config, codec, place)
        mine |= {"is_stored": isinstance(prompts, StoredPrompts), "prompts": tuple(prompts)}
        mine["held_out"] = load_run_prompts(config, codec, place, held_out=True)
    except ValueError as error:
        assert expects_error, error
        mine["error"] = str(error)
    save(folder / "results.pt", place.gather_over_world(mine))
    shut_down()
