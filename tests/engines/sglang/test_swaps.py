"""Weights on their way to a real SGLang server on the CPU: ``make test-sglang``."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.sglang.engine import SGLangEngine
from tests.engines.sglang.servers import (
    BOUND,
    CONFIG,
    MARKS,
    largest_gap,
    make_prompts,
    rollouts_of,
    weights_of,
)

pytestmark = MARKS


@pytest.fixture(params=["tensor", "broadcast", "disk"])
def any_transport(request, engine, folders) -> Iterator[SGLangEngine]:
    """The same server, reached by URL except with the first of the transports."""
    if request.param == "tensor":
        yield engine
        return
    config = replace(CONFIG, urls=(engine.replicas[0].name,), weight_transport=request.param)
    by_url = SGLangEngine(config, folders["old"], "cpu", torch.float32)
    yield by_url
    by_url.close()


def test_after_a_swap_the_new_weights_sample_and_nothing_of_the_old_is_cached(
    any_transport, folders
):
    engine = any_transport
    sampling = SamplingConfig(num_samples=2, temperature=0.0, max_new_tokens=20)
    prompts = make_prompts(3)
    texts = {}
    for version, model in enumerate(("old", "new", "old"), start=10):
        engine.load_weights(weights_of(folders[model]), version)
        groups = engine.generate(prompts, sampling)
        assert {rollout.weights_version for rollout in rollouts_of(groups)} == {version}
        assert largest_gap(folders[model], groups, 1.0) < BOUND
        texts[version] = [rollout.ids for rollout in rollouts_of(groups)]
    assert texts[10] == texts[12] != texts[11]


def test_an_engine_that_slept_samples_after_the_next_load_only(engine, folders):
    engine.load_weights(weights_of(folders["old"]), version=30)
    engine.sleep()
    with pytest.raises(RuntimeError, match="call load_weights before generate"):
        engine.generate(make_prompts(1), SamplingConfig())
    engine.load_weights(weights_of(folders["new"]), version=31)
    groups = engine.generate(make_prompts(2), SamplingConfig(num_samples=2, max_new_tokens=8))
    assert largest_gap(folders["new"], groups, 1.0) < BOUND


def test_a_tensor_with_other_values_than_sent_stops_the_run_with_its_name(engine, folders):
    engine.load_weights(weights_of(folders["old"]), version=40)
    names = list(engine.replicas[0].api.checksums()[0])
    spoilt = "model.layers.1.self_attn.qkv_proj.weight"
    others = [name for name in names if name != spoilt]
    body = {"action": "reset_tensors", "skip_tensor_list": others}
    engine.replicas[0].client.post("/weights_checker", body)
    with pytest.raises(RuntimeError, match=f"{spoilt} on engine rank 0") as caught:
        engine.verify()
    assert "input_layernorm" not in str(caught.value)


def test_incomplete_weights_are_named_and_the_next_swap_works(engine, folders):
    wrong = [("model.layers.0.mlp.up_proj.weight", torch.zeros(5, 7))]
    with pytest.raises(ValueError, match=r"up_proj\.weight has the shape \(5, 7\), not \(48, 32\)"):
        engine.load_weights(iter(wrong), version=50)
    with pytest.raises(RuntimeError, match="call load_weights"):
        engine.generate(make_prompts(1), SamplingConfig())
    engine.load_weights(weights_of(folders["old"]), version=51)
    groups = engine.generate(make_prompts(1), SamplingConfig(max_new_tokens=8))
    assert largest_gap(folders["old"], groups, 1.0) < BOUND
