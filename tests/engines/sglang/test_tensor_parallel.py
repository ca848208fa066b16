"""A real server of two ranks on the CPU, by every transport: ``make test-sglang``."""

from dataclasses import replace

import torch
from safetensors.torch import load_file

from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.sglang.engine import SGLangEngine
from tests.engines.sglang.servers import (
    BOUND,
    CONFIG,
    MARKS,
    VOCAB_SIZE,
    largest_gap,
    make_prompts,
)
from tests.tiny import make_hf_folder

pytestmark = MARKS


def test_both_ranks_hold_their_shards_of_new_weights_by_every_transport(tmp_path):
    """Of a model with a dense layer, and one of experts."""
    folders = [
        make_hf_folder(tmp_path / f"{n}", "qwen3_moe", VOCAB_SIZE, seed=n, mlp_only_layers=[0])
        for n in range(2)
    ]
    config = replace(CONFIG, tensor_parallel_size=2, log_folder=str(tmp_path))
    own = SGLangEngine(config, folders[0], "cpu", torch.float32)
    engines = [own]
    try:
        for transport in ("broadcast", "disk"):
            at_url = replace(config, urls=(own.replicas[0].name,), weight_transport=transport)
            engines.append(SGLangEngine(at_url, folders[0], "cpu", torch.float32))
        for number, engine in enumerate(engines):
            for version, folder in enumerate(folders, start=10 * number):
                # Compares the checksums of all shards, as verify_interval = 1.
                engine.load_weights(load_file(folder / "model.safetensors").items(), version)
                held = engine.replicas[0].api.checksums() or ()
                assert len(held) == 2
                assert {"mlp.gate_up_proj.weight", "mlp.experts.w13_weight"} <= {
                    name.split(".", 3)[-1] for name in held[0]
                }
                sampling = SamplingConfig(num_samples=2, max_new_tokens=8)
                groups = engine.generate(make_prompts(2), sampling)
                assert largest_gap(folder, groups, 1.0) < BOUND
    finally:
        for engine in reversed(engines):
            engine.close()
