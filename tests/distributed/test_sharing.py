"""Data ranks in processes of their own have one queue over their servers."""

from dataclasses import replace
from pathlib import Path

import torch

from megatron_gad.config.rollout import SGLangConfig
from megatron_gad.config.toml import to_toml
from megatron_gad.engines.base import request_seed
from tests.answering_server import answering_server, sampled_ids
from tests.distributed import sharing_worker
from tests.distributed.sharing_worker import NUM_SAMPLES, prompts_of
from tests.ranks import run_on_ranks
from tests.tiny_run import make_run


def test_the_server_of_one_rank_samples_for_another(tmp_path: Path) -> None:
    config = make_run(tmp_path)
    num_requests = NUM_SAMPLES * 6  # of both ranks, in one sampling
    with answering_server() as first, answering_server() as second:
        # The first rank's server answers nothing before the other has served its part as well, but
        # for the two that are there.
        first.before = lambda body: second.wait_until_served(num_requests - 2)
        config = replace(
            config,
            rollout=replace(config.rollout, engine="sglang"),
            sglang=SGLangConfig(
                urls=(first.url, second.url),
                weight_transport="disk",
                max_running_requests=2,
                verify_interval=0,
            ),
        )
        (tmp_path / "run.toml").write_text(to_toml(config))
        run_on_ranks(sharing_worker.main, 2, tmp_path)
        assert len(first.served) + len(second.served) == 2 * num_requests
    for rank, samplings in enumerate(torch.load(tmp_path / "results.pt", weights_only=False)):
        for groups in samplings:
            assert [group.prompt.ids for group in groups] == [p.ids for p in prompts_of(rank)]
            for group in groups:
                seeds = [request_seed(3, group.prompt.index, n) for n in range(NUM_SAMPLES)]
                assert [list(r.ids) for r in group.rollouts] == [*map(sampled_ids, seeds)]
                assert {r.weights_version for r in group.rollouts} == {4}
