"""A real server of two ranks on the CPU, by every transport: ``make test-sglang``."""

from dataclasses import replace

import torch

from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.sglang.engine import SGLangEngine
from megatron_gad.engines.sglang.site import ServerSite
from tests.engines.sglang.servers import (
    BOUND,
    CONFIG,
    MARKS,
    largest_gap,
    make_prompts,
    weights_of,
)

pytestmark = MARKS


def test_both_ranks_hold_their_shards_of_new_weights_by_every_transport(folders, tmp_path):
    config = replace(CONFIG, tensor_parallel_size=2)
    own = SGLangEngine(config, folders["old"], "cpu", torch.float32, ServerSite(folder=tmp_path))
    engines = [own]
    try:
        for transport in ("broadcast", "disk"):
            at_url = replace(config, urls=(own.replicas[0].name,), weight_transport=transport)
            engines.append(SGLangEngine(at_url, folders["old"], "cpu", torch.float32))
        for number, engine in enumerate(engines):
            for version, model in enumerate(("old", "new"), start=10 * number):
                # Compares the checksums of all shards, as verify_interval = 1.
                engine.load_weights(weights_of(folders[model]), version)
                assert len(engine.replicas[0].api.checksums() or ()) == 2
                sampling = SamplingConfig(num_samples=2, max_new_tokens=8)
                groups = engine.generate(make_prompts(2), sampling)
                assert largest_gap(folders[model], groups, 1.0) < BOUND
    finally:
        for engine in reversed(engines):
            engine.close()
