"""Broadcast to several real SGLang servers, of which one fails: ``make test-sglang``."""

import signal
from collections.abc import Iterator
from dataclasses import replace
from threading import Timer

import pytest
import torch
import torch.distributed as dist

from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.sglang.engine import SGLangEngine
from megatron_gad.engines.sglang.site import ServerSite
from tests.engines.sglang.servers import (
    BOUND,
    CONFIG,
    MARKS,
    harm_scheduler,
    largest_gap,
    make_prompts,
    processes_in,
    rollouts_of,
    weights_of,
)

pytestmark = MARKS


@pytest.fixture
def training_group() -> Iterator[None]:
    """The process group that a trainer has."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    ones = torch.ones(3)
    dist.all_reduce(ones)
    assert torch.equal(ones, torch.ones(3))
    dist.destroy_process_group()


def test_broadcast_reaches_every_server_and_one_that_was_restarted(
    training_group, folders, tmp_path
):
    config = replace(CONFIG, num_servers=2, weight_transport="broadcast")
    engine = SGLangEngine(config, folders["old"], "cpu", torch.float32, ServerSite(folder=tmp_path))
    sampling = SamplingConfig(num_samples=40, max_new_tokens=30)
    try:
        for version, model in enumerate(("old", "new", "old"), start=1):
            engine.load_weights(weights_of(folders[model]), version)
            for replica in engine.replicas:
                assert len(replica.api.checksums() or ()) == 1
            groups = engine.generate(make_prompts(2), replace(sampling, num_samples=4))
            assert largest_gap(folders[model], groups, 1.0) < BOUND
        first, second = (replica.process for replica in engine.replicas)
        assert first is not None
        harmer = Timer(0.5, harm_scheduler, (processes_in({first.group}), signal.SIGKILL))
        harmer.start()
        groups = engine.generate(make_prompts(12), sampling)
        harmer.join()
        # The other server may have answered everything while it is still being restarted.
        engine.load_weights(weights_of(folders["new"]), version=4)
        assert engine.replicas[0].process is not first
        assert engine.replicas[1].process is second
        assert {rollout.weights_version for rollout in rollouts_of(groups)} == {3}
        assert [len(group.rollouts) for group in groups] == [40] * 12
        assert largest_gap(folders["old"], groups, 1.0) < BOUND
        groups = engine.generate(make_prompts(3), replace(sampling, num_samples=8))
        assert largest_gap(folders["new"], groups, 1.0) < BOUND
    finally:
        engine.close()
