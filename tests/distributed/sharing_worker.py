"""Samples on a server for each rank, most of the prompts on one; started on two ranks."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from megatron_gad.checks.inputs import read_codecs
from megatron_gad.config.run import RunConfig
from megatron_gad.config.toml import read_toml
from megatron_gad.engines.base import SamplingConfig
from megatron_gad.runtime.parts import build_sampler
from megatron_gad.runtime.sampler import Request
from megatron_gad.training.parallel import initialize, shut_down
from megatron_gad.types import Prompt
from tests.distributed.workers import save

NUM_SAMPLES = 3
NUM_PROMPTS = (5, 1)


def prompts_of(rank: int) -> list[Prompt]:
    """Return the prompts of a rank."""
    first = 10 * rank
    return [Prompt(first + n, (), "", (5, 6 + first + n), ()) for n in range(NUM_PROMPTS[rank])]


def main(folder: Path) -> None:
    """Write down the groups that every rank gets in two samplings."""
    config = read_toml(folder / "run.toml", RunConfig)
    place = initialize(config.parallel, config.seed)
    sampler = build_sampler(config, read_codecs(config), place)
    model = AutoModelForCausalLM.from_pretrained(config.student.path, dtype=torch.float32)
    sampler.load_weights(model.named_parameters(), version=4)
    sampling = SamplingConfig(NUM_SAMPLES, max_new_tokens=2, seed=3)
    request = Request(prompts_of(place.data_rank), sampling)
    mine = [sampler.sample([request])[0], sampler.start([request])()[0]]
    every = place.gather_over_world(mine)
    sampler.close()
    save(folder / "results.pt", every)
    shut_down()
