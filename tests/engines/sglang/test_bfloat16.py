"""A server that computes in bfloat16, against transformers in bfloat16: ``make test-sglang``."""

import torch

from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.sglang.engine import SGLangEngine
from megatron_gad.engines.sglang.site import ServerSite
from tests.engines.sglang.servers import CONFIG, MARKS, gaps_of, make_prompts, weights_of

pytestmark = MARKS
# Nats on a sampled token. One bfloat16 step of a logit between 4 and 8 is 0.03.
LARGEST, MEAN = 0.3, 0.03


def test_a_bfloat16_server_is_near_a_bfloat16_forward_before_and_after_a_swap(folders, tmp_path):
    engine = SGLangEngine(
        CONFIG, folders["old"], "cpu", torch.bfloat16, ServerSite(folder=tmp_path)
    )
    try:
        engine.sleep()  # as in a run whose first stages do not sample
        check(engine, folders)
    finally:
        engine.close()


def check(engine: SGLangEngine, folders) -> None:
    """Swap, which compares checksums, and sample."""
    sampling = SamplingConfig(num_samples=8, temperature=1.0, max_new_tokens=20)
    for version, model in enumerate(("old", "new", "old"), start=1):
        engine.load_weights(weights_of(folders[model]), version)
        held = engine.replicas[0].api.checksums()
        assert held is not None
        groups = engine.generate(make_prompts(4), sampling)
        gaps = gaps_of(folders[model], groups, 1.0, torch.bfloat16)
        assert len(gaps) == 4 * 8 * 20
        assert float(gaps.max()) < LARGEST
        assert float(gaps.mean()) < MEAN
        other = "new" if model == "old" else "old"
        assert float(gaps_of(folders[other], groups, 1.0, torch.bfloat16).mean()) > 10 * MEAN
