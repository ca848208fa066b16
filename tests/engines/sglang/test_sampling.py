"""Responses of a real SGLang server on the CPU: ``make test-sglang``."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed import HashStore, PrefixStore

from megatron_gad.config.rollout import SGLangConfig
from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.sglang.engine import SGLangEngine
from megatron_gad.engines.sglang.sharing import Places, Sharing
from megatron_gad.engines.sglang.site import ServerSite
from tests.answering_server import answering_server
from tests.engines.sglang.servers import (
    BOUND,
    MARKS,
    STOP,
    largest_gap,
    make_prompts,
    reference,
    rollouts_of,
    weights_of,
)

pytestmark = MARKS


def test_rollout_logprobs_equal_a_transformers_forward(engine, folders):
    engine.load_weights(weights_of(folders["old"]), version=1)
    sampling = SamplingConfig(num_samples=6, temperature=0.8, max_new_tokens=20, stop_ids=STOP)
    prompts = make_prompts(4)
    groups = engine.generate(prompts, sampling)
    assert [group.prompt for group in groups] == prompts
    assert {rollout.weights_version for rollout in rollouts_of(groups)} == {1}
    assert largest_gap(folders["old"], groups, 0.8) < BOUND
    work = engine.take_work()
    assert work.tokens == sum(len(rollout.ids) for rollout in rollouts_of(groups))
    assert work.prompt_tokens == 6 * sum(len(prompt.ids) for prompt in prompts)
    # The server reads what comes at once before it has any of it; later it has all but a token.
    engine.generate(prompts, replace(sampling, num_samples=1))
    again = engine.take_work()
    assert 0 < again.cached_tokens < again.prompt_tokens


def test_greedy_text_equals_that_of_transformers(engine, folders):
    engine.load_weights(weights_of(folders["old"]), version=20)
    prompts = make_prompts(4)
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=25, stop_ids=STOP)
    model = reference(folders["old"])
    for group in engine.generate(prompts, sampling):
        ids = torch.tensor([group.prompt.ids])
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=25,
            eos_token_id=list(STOP),
        )
        assert group.rollouts[0].ids == tuple(expected[0, ids.shape[1] :].tolist())


def test_the_stop_id_is_kept_as_the_last_and_the_cap_cuts_without_one(engine, folders):
    engine.load_weights(weights_of(folders["old"]), version=21)
    sampling = SamplingConfig(
        num_samples=40, temperature=2.0, max_new_tokens=9, stop_ids=(*STOP, 9, 10, 11)
    )
    rollouts = rollouts_of(engine.generate(make_prompts(3), sampling))
    for rollout in rollouts:
        assert len(rollout.ids) == len(rollout.rollout_logprobs) <= 9
        assert not set(rollout.ids[:-1]) & set(sampling.stop_ids)
        assert (rollout.finish_reason == "stop") == (rollout.ids[-1] in sampling.stop_ids)
        assert rollout.finish_reason == "stop" or len(rollout.ids) == 9
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}


def test_the_models_own_end_token_does_not_end_a_response(engine, folders):
    engine.load_weights(weights_of(folders["old"]), version=22)
    sampling = SamplingConfig(num_samples=60, temperature=3.0, max_new_tokens=12, stop_ids=(96,))
    rollouts = rollouts_of(engine.generate(make_prompts(2), sampling))
    assert any(1 in rollout.ids[:-1] for rollout in rollouts)  # its config.json says 1
    without = replace(sampling, stop_ids=(), num_samples=5)
    assert {len(r.ids) for r in rollouts_of(engine.generate(make_prompts(2), without))} == {12}


def test_samples_of_a_prompt_differ(engine, folders):
    engine.load_weights(weights_of(folders["old"]), version=23)
    sampling = SamplingConfig(num_samples=8, temperature=1.5, max_new_tokens=12)
    groups = engine.generate(make_prompts(2), sampling)
    assert len({rollout.ids for rollout in rollouts_of(groups)}) == 16


def test_a_rank_samples_on_the_server_that_another_lends_it(engine, folders, tmp_path: Path):
    engine.load_weights(weights_of(folders["old"]), version=24)
    sharing = Sharing(HashStore(), 2)
    lent = PrefixStore("sampling 1", sharing.store)
    places = Places(sharing, "sampling 1")
    places.lend(engine.replicas[0].name, 8)
    places.finish()

    def before(body: dict[str, Any]) -> bool:
        """Answer when the other server has, which shows in its 8 places: they are lent on."""
        while lent.add("lent", 0) < 1 + 8:
            time.sleep(0.05)
        return True

    sampling = SamplingConfig(num_samples=6, temperature=0.8, max_new_tokens=20, stop_ids=STOP)
    with answering_server(before=before) as own:
        config = SGLangConfig(
            urls=(own.url,),
            weight_transport="disk",
            max_running_requests=1,
        )
        site = ServerSite(folder=tmp_path, sharing=sharing)
        rank = SGLangEngine(config, folders["old"], "cpu", torch.float32, site)
        rank.load_weights(weights_of(folders["old"]), version=24)
        groups = rank.generate(make_prompts(4), sampling)
        rank.close()
    assert len(own.served) == 1
    groups[0] = replace(groups[0], rollouts=groups[0].rollouts[1:])  # the first request is its own
    assert len(rollouts_of(groups)) == 23
    assert largest_gap(folders["old"], groups, 0.8) < BOUND
