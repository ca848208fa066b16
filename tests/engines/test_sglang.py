"""The SGLang engine against a real server on the CPU: ``make test-sglang``."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.sglang.engine import SGLangEngine
from megatron_gad.engines.sglang.launch import SGLangConfig
from megatron_gad.engines.sglang.server import ServerStartError
from megatron_gad.types import Group, Prompt, Rollout
from tests.tiny import make_hf_folder

ROOT = Path(__file__).parents[2]
SERVER_PYTHON = ROOT / ".venv-sglang/bin/python"
pytestmark = [
    pytest.mark.sglang,
    pytest.mark.skipif(
        not SERVER_PYTHON.is_file(), reason="no .venv-sglang; tools/make_sglang_env.sh makes it"
    ),
]
VOCAB_SIZE = 97
STOP = (3, 4)
# A float32 server computes in another order than transformers.
BOUND = 1e-4
CONFIG = SGLangConfig(
    python=str(SERVER_PYTHON),
    start_timeout_s=300,
    request_timeout_s=120,
    health_interval_s=2,
    health_timeout_s=20,
    update_weight_buffer_size=8000,  # less than the embedding, so that there are many buckets
    verify_interval=1,
    max_running_requests=32,
    server_args={"max_total_tokens": 8192},
)


def make_prompts(count: int) -> list[Prompt]:
    """Return prompts of different lengths."""
    return [Prompt(7 * n, (), "", tuple(range(5 + n, 9 + 2 * n)), ()) for n in range(count)]


def reference(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def weights_of(folder: Path) -> Iterator[tuple[str, Tensor]]:
    return reference(folder).named_parameters()


@torch.no_grad()
def largest_gap(folder: Path, groups: list[Group], temperature: float) -> float:
    """Return max |engine - transformers| over all sampled tokens, in nats."""
    model = reference(folder)
    gaps = []
    for group in groups:
        for rollout in group.rollouts:
            ids = torch.tensor([group.prompt.ids + rollout.ids])
            logits = model(input_ids=ids).logits[0, len(group.prompt.ids) - 1 : -1].float()
            logprobs = torch.log_softmax(logits / temperature, dim=-1)
            expected = logprobs.gather(1, torch.tensor(rollout.ids)[:, None])[:, 0]
            gaps.append((torch.tensor(rollout.rollout_logprobs) - expected).abs().max())
    return float(torch.stack(gaps).max())


def rollouts_of(groups: list[Group]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group.rollouts]


def processes_of(engine: SGLangEngine) -> list[psutil.Process]:
    """Return all processes of the engine's servers, the keepers included."""
    groups = {r.process.group for r in engine.replicas if r.process is not None}
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) in groups:
                found.append(process)
        except ProcessLookupError:
            continue
    return found


def wait_until_gone(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return those of the processes that still run after some seconds."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        left = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not left:
            return []
        time.sleep(0.2)
    return left


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Two models of one shape."""
    root = tmp_path_factory.mktemp("models")
    return {
        name: make_hf_folder(root / name, "qwen2", VOCAB_SIZE, seed=seed)
        for seed, name in enumerate(("old", "new"))
    }


@pytest.fixture(scope="module")
def engine(folders, tmp_path_factory) -> Iterator[SGLangEngine]:
    """One engine for the module; a test that needs weights loads them."""
    config = replace(CONFIG, log_folder=str(tmp_path_factory.mktemp("logs")))
    engine = SGLangEngine(config, folders["old"], "cpu", torch.float32)
    yield engine
    processes = processes_of(engine)
    assert len(processes) >= 4  # keeper, server, scheduler, detokenizer
    engine.close()
    assert wait_until_gone(processes) == []


@pytest.fixture(scope="module")
def other_transport(engine, folders) -> Iterator[SGLangEngine]:
    """The same server reached by URL, with weights as files."""
    urls = (engine.replicas[0].name,)
    by_url = SGLangEngine(replace(CONFIG, urls=urls), folders["old"], "cpu", torch.float32)
    yield by_url
    by_url.close()


def test_rollout_logprobs_equal_a_transformers_forward(engine, folders):
    engine.load_weights(weights_of(folders["old"]), version=1)
    sampling = SamplingConfig(num_samples=6, temperature=0.8, max_new_tokens=20, stop_ids=STOP)
    prompts = make_prompts(4)
    groups = engine.generate(prompts, sampling)
    assert [group.prompt for group in groups] == prompts
    assert {rollout.weights_version for rollout in rollouts_of(groups)} == {1}
    assert largest_gap(folders["old"], groups, 0.8) < BOUND


@pytest.mark.parametrize("name", ["engine", "other_transport"], ids=["tensor", "disk"])
def test_after_a_swap_the_new_weights_sample_and_nothing_of_the_old_is_cached(
    request, folders, name
):
    engine: SGLangEngine = request.getfixturevalue(name)
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


@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_a_server_that_fails_is_restarted_with_the_weights_and_its_requests_sent_again(
    engine, folders, harm
):
    engine.load_weights(weights_of(folders["new"]), version=60)
    processes = processes_of(engine)
    num_restarts = engine.replicas[0].num_restarts
    sampling = SamplingConfig(num_samples=40, max_new_tokens=40)
    prompts = [Prompt(n, (), "", (5, 6 + n), ()) for n in range(12)]
    harmer = Timer(1.0, harm_scheduler, (processes, harm))
    harmer.start()
    groups = engine.generate(prompts, sampling)
    harmer.join()
    assert engine.replicas[0].num_restarts == num_restarts + 1
    assert [len(group.rollouts) for group in groups] == [40] * 12
    assert {len(rollout.ids) for rollout in rollouts_of(groups)} == {40}
    assert {rollout.weights_version for rollout in rollouts_of(groups)} == {60}
    assert largest_gap(folders["new"], groups, 1.0) < BOUND
    assert wait_until_gone(processes) == []


def test_a_server_that_died_in_its_sleep_is_back_after_the_next_load(engine, folders):
    engine.load_weights(weights_of(folders["old"]), version=70)
    engine.sleep()
    harm_scheduler(processes_of(engine), signal.SIGKILL)
    engine.load_weights(weights_of(folders["new"]), version=71)
    groups = engine.generate(make_prompts(2), SamplingConfig(num_samples=2, max_new_tokens=8))
    assert largest_gap(folders["new"], groups, 1.0) < BOUND


def harm_scheduler(processes: list[psutil.Process], harm: signal.Signals) -> None:
    """Send a signal to the process of the server that computes."""
    schedulers = [p for p in processes if "schedul" in p.name()]
    assert len(schedulers) == 1, [p.name() for p in processes]
    schedulers[0].send_signal(harm)


def test_a_server_that_cannot_start_says_why(folders, tmp_path):
    config = replace(
        CONFIG, log_folder=str(tmp_path), server_args={"attention_backend": "no-such-thing"}
    )
    with pytest.raises(ServerStartError, match="no-such-thing"):
        SGLangEngine(config, folders["old"], "cpu", torch.float32)
