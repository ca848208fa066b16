"""Mixtures of experts on a real server, which fuses and shards them: ``make test-sglang``."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.sglang.engine import SGLangEngine
from megatron_gad.engines.sglang.site import ServerSite
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


@pytest.mark.parametrize(("family", "num_ranks"), [("qwen3_moe", 2), ("mixtral", 1)])
def test_a_server_holds_the_experts_that_were_sent_and_computes_with_them(
    family, num_ranks, tmp_path
):
    folders = [make_hf_folder(tmp_path / f"{n}", family, VOCAB_SIZE, seed=n) for n in range(2)]
    config = replace(CONFIG, tensor_parallel_size=num_ranks)
    engine = SGLangEngine(config, folders[0], "cpu", torch.float32, ServerSite(folder=tmp_path))
    try:
        for version, folder in enumerate(folders):
            # Compares the checksums of all shards, as verify_interval = 1.
            engine.load_weights(load_file(folder / "model.safetensors").items(), version)
            sampling = SamplingConfig(num_samples=2, max_new_tokens=8)
            groups = engine.generate(make_prompts(2), sampling)
            assert largest_gap(folder, groups, 1.0) < BOUND
        held = engine.replicas[0].api.checksums()
        assert held is not None
        names = held[0]
        spoilt = next(name for name in names if name.endswith("experts.w2_weight"))
        others = [name for name in names if name != spoilt]
        body = {"action": "reset_tensors", "skip_tensor_list": others}
        engine.replicas[0].client.post("/weights_checker", body)
        with pytest.raises(RuntimeError, match=f"{spoilt} on engine rank 0"):
            engine.verify()
    finally:
        engine.close()
