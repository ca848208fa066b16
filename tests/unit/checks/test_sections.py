"""The checks: every violation at once, each with key, value, what is allowed and the remedy."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, PretrainedConfig

from megatron_gad.checks.run import check_config
from megatron_gad.checks.sglang import check_sglang
from megatron_gad.config.rewards import RewardConfig
from megatron_gad.config.rollout import SGLangConfig
from megatron_gad.config.run import RunConfig
from tests.tiny import make_hf_folder
from tests.tiny_run import changed, make_run


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Return a configuration without a mistake, its files beside it."""
    return make_run(tmp_path_factory.mktemp("run"))


def test_a_good_configuration_has_no_violations(good: RunConfig) -> None:
    assert check_config(good, world_size=1) == []
    assert check_config(good, world_size=8) == []


# What to change in a good configuration, and the whole message that has to follow.
CHANGES: list[tuple[dict[str, dict[str, object]], str]] = [
    (
        {"adversarial": {"group_size": 1}},
        "adversarial.group_size = 1 gives zero advantages; use 2 or more, or stages = ['seqkd']",
    ),
    (
        {"rollout": {"temperature": 0.0}},
        "rollout.temperature = 0.0 samples greedily, so that the responses to a prompt are all "
        "equal; give a value above 0, 0.8 is the paper's",
    ),
    (
        {"watchdog": {"start_s": 1e10}},
        "watchdog.start_s = 10000000000.0 is not allowed; give a value from 0 (never) to 31536000 "
        "(a year)",
    ),
    (
        {
            "rollout": {"max_total_tokens": 255},
            "data": {"max_prompt_tokens": 190, "max_response_tokens": 64},
        },
        "rollout.max_total_tokens = 255 has no room for the longest prompt (data.max_prompt_tokens "
        "= 190) with its response (data.max_response_tokens = 64); make it at least 256",
    ),
    (
        {"rollout": {"engine": "sglang"}},
        "rollout.engine = 'sglang', but that package is not installed; install "
        "megatron-gad[sglang], name an interpreter that has it in sglang.python, name running "
        "servers in sglang.urls, or use 'embedded'",
    ),
    (
        {"rollout": {"engine": "sglang"}, "sglang": {"python": "/no/such/python"}},
        "sglang.python = '/no/such/python' is no file; name the interpreter that has SGLang",
    ),
    (
        {
            "rollout": {"engine": "sglang"},
            "sglang": {"urls": ("http://a:1",), "weight_transport": "tensor"},
        },
        "sglang.weight_transport = 'tensor' shares memory with servers that the run starts, "
        "but sglang.urls is set; use 'broadcast' or 'disk', or leave urls out",
    ),
    (
        {
            "rollout": {"engine": "sglang"},
            "sglang": {"python": sys.executable, "server_args": {"tp-size": 2}},
        },
        "sglang.server_args sets tp_size, which is not free: use sglang.tensor_parallel_size; "
        "leave it out",
    ),
    (
        {
            "rollout": {"engine": "sglang"},
            "sglang": {"python": sys.executable, "num_servers": 2, "tensor_parallel_size": 2},
        },
        "sglang.num_servers 2 x sglang.tensor_parallel_size 2 = 4 GPUs, but one copy of the model "
        "has 1 rank(s) on a host, whose GPUs its servers share; use fewer or smaller servers",
    ),
    (
        {
            "rollout": {"engine": "sglang"},
            "sglang": {"python": sys.executable, "request_timeout_s": 1500.0},
        },
        "watchdog.phase_s = 1500 ends the run before sglang.request_timeout_s = 1500 is over, "
        "after which a server would be brought back; make the first longer (0: never ends), or the "
        "second shorter",
    ),
    (
        {"parallel": {"sequence_parallel": True}},
        "parallel.sequence_parallel = True shards between tensor-parallel ranks, but "
        "tensor_model_parallel_size = 1; make it 2 or more, or leave sequence_parallel out",
    ),
    (
        {"compute": {"max_tokens_per_microbatch": 191}},
        "compute.max_tokens_per_microbatch = 191 does not hold the longest row, "
        "data.max_prompt_tokens + data.max_response_tokens = 192 tokens; make it at least that, or "
        "leave it out",
    ),
    (
        {"compute": {"fp8_format": "hybrid"}},
        "compute.fp8_format = 'hybrid' needs Transformer Engine; set compute.transformer_impl = "
        "'transformer_engine', or leave fp8_format out",
    ),
    (
        {"adversarial": {"discriminator_samples": 9}},
        "adversarial.discriminator_samples = 9 is more than the adversarial.group_size = 8 samples "
        "of a prompt; make it smaller, or 0 for all",
    ),
    (
        {"warmup": {"stop_below": 0.7}},
        "warmup.stop_below = 0.7 is not below ln 2 = 0.693, the loss of a discriminator that "
        "guesses; take 0.4 to 0.6, or 0 to end by count",
    ),
    (
        {"warmup": {"steps": 10}},
        "warmup.steps = 10 ends before the student learns: warmup.discriminator_only_steps = 10; "
        "make steps larger",
    ),
    (
        {"optimizer": {"adam_beta2": 1.0}},
        "optimizer.adam_beta2 = 1.0 is not allowed; give a value at least 0 and below 1",
    ),
    (
        {"discriminator": {"lr": float("nan")}},
        "discriminator.lr = nan is not allowed; give a value above 0",
    ),
    (
        {"optimizer": {"min_lr": 1.0}},
        "optimizer.min_lr = 1.0 is above student.lr = 1e-06, but the rate decays to it; "
        "make it smaller",
    ),
    (
        {"schedule": {"device_memory_gib": 0.0}},
        "schedule.device_memory_gib = 0.0 is not allowed; give a value above 0 and at most 1000000",
    ),
    (
        {"schedule": {"device_memory_gib": -80.0}},
        "schedule.device_memory_gib = -80.0 is not allowed; give a value above 0 and at most "
        "1000000",
    ),
    (
        {"gad": {"tis_cap": 0.5}},
        "gad.tis_cap = 0.5 would scale every ratio down; give 1 or more (2 is usual), or 0 to "
        "switch the correction off",
    ),
    (
        {"data": {"teacher_column": "content"}},
        "data.prompt_column = data.teacher_column = 'content'; prompts and teacher responses are "
        "two columns",
    ),
    (
        {"data": {"path": "no/such.jsonl"}},
        "data.path = 'no/such.jsonl' does not exist; name a data file, a folder of "
        "them, or hub:<name>; paths are relative to the folder the command runs in",
    ),
    (
        {"checkpoint": {"load": "no/such"}},
        "checkpoint.load = 'no/such' holds no latest_checkpointed_iteration.txt; name the run "
        "directory of a run that saved a checkpoint, or leave it out to start anew",
    ),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_each_violation_says_key_value_what_is_allowed_and_the_remedy(
    good: RunConfig, change: dict[str, dict[str, object]], message: str
) -> None:
    assert check_config(changed(good, change), world_size=1) == [message]


def test_all_violations_are_reported_at_once(good: RunConfig) -> None:
    bad = replace(
        good,
        stages=("adversarial", "seqkd", "warmup"),
        parallel=replace(good.parallel, tensor_model_parallel_size=3),
        compute=replace(good.compute, micro_batch_size=0),
        seqkd=replace(good.seqkd, keep_best=True, patience=2),
        adversarial=replace(good.adversarial, group_size=1, epochs=0.0),
        gad=replace(good.gad, kl_coef=-1.0, clip_range=1.5),
    )
    keys = [message.split(" ")[0] for message in check_config(bad, world_size=2)]
    assert keys == [
        "stages",
        "parallel.tensor_model_parallel_size",  # does not divide the ranks
        "compute.micro_batch_size",
        "parallel.tensor_model_parallel_size",  # nor the heads
        "parallel.tensor_model_parallel_size",  # nor the key-value groups
        "gad.kl_coef",
        "gad.clip_range",
        "seqkd.patience",
        "seqkd.keep_best",
        "adversarial.epochs",
        "adversarial.group_size",
    ]


def test_a_stage_that_does_not_run_is_not_checked(good: RunConfig) -> None:
    bad = replace(good, adversarial=replace(good.adversarial, group_size=1))
    assert len(check_config(bad, world_size=1)) == 1
    assert check_config(replace(bad, stages=("warmup",)), world_size=1) == []


def test_a_stage_that_ranks_needs_a_discriminator_that_was_taught(good: RunConfig) -> None:
    ranking = replace(good, stages=("best_of_n",))
    assert check_config(ranking, world_size=1) == [
        "stages has 'best_of_n', which ranks by a discriminator that no stage before it teaches; "
        "put 'warmup' before it, or give checkpoint.load of a run that has one"
    ]
    assert check_config(replace(good, stages=("warmup", "best_of_n")), world_size=1) == []
    loaded = replace(ranking.checkpoint, load=good.data.path)
    assert not any("ranks" in m for m in check_config(replace(ranking, checkpoint=loaded), 1))
    function = "megatron_gad.engines.rewards.shipped:length"
    rewards = (RewardConfig("length", function), RewardConfig("discriminator", weight=0.0))
    by_reward = replace(ranking, rewards=rewards)
    assert check_config(by_reward, world_size=1) == []
    assert len(check_config(replace(ranking, rewards=rewards[:1]), world_size=1)) == 1
    filtered = replace(good.best_of_n, min_margin=0.0)
    assert len(check_config(replace(by_reward, best_of_n=filtered), world_size=1)) == 1


@pytest.mark.parametrize(
    ("keep", "margin", "is_refused"),
    [(8, None, True), (9, 0.0, True), (8, 0.0, False), (7, None, False)],
)
def test_the_best_have_to_be_some_of_the_samples(
    good: RunConfig, keep: int, margin: float | None, is_refused: bool
) -> None:
    section = replace(good.best_of_n, group_size=8, keep=keep, min_margin=margin)
    found = check_config(replace(good, stages=("warmup", "best_of_n"), best_of_n=section), 1)
    expected = (
        f"best_of_n.keep = {keep} of best_of_n.group_size = 8 samples chooses nothing, and the "
        "student would learn to stay as it is; keep fewer, or keep all and give "
        "best_of_n.min_margin"
    )
    assert found == ([expected] if is_refused else [])


def test_prompts_of_a_step_have_to_be_shared_evenly_by_data_ranks(good: RunConfig) -> None:
    layout = replace(good.parallel, tensor_model_parallel_size=2)
    assert check_config(replace(good, parallel=layout), world_size=8) == []
    assert check_config(replace(good, parallel=layout, stages=("warmup",)), world_size=6) == [
        "warmup.prompts_per_step = 8 has to be a positive multiple of the 3 data-parallel rank(s); "
        "the next that is one is 9"
    ]


def test_the_layout_has_to_divide_the_model(good: RunConfig) -> None:
    layout = replace(good.parallel, tensor_model_parallel_size=4, pipeline_model_parallel_size=3)
    assert check_config(replace(good, parallel=layout), world_size=12) == [
        "parallel.tensor_model_parallel_size = 4 does not divide num_key_value_heads = 2 of "
        f"student.path = {good.student.path!r}; use one of 1, 2",
        "parallel.pipeline_model_parallel_size = 3 does not divide num_hidden_layers = 2 of "
        f"student.path = {good.student.path!r}; use one of 1, 2",
    ]


def test_the_lengths_have_to_fit_into_the_models_context(good: RunConfig) -> None:
    longer = replace(good, data=replace(good.data, max_response_tokens=129))
    assert check_config(longer, world_size=1) == [
        "data.max_prompt_tokens + data.max_response_tokens = 257 exceeds the 256 positions of "
        f"student.path = {good.student.path!r}; make one of them smaller"
    ]


def test_what_a_model_folder_lacks_is_named(good: RunConfig, tmp_path: Path) -> None:
    missing = replace(good, student=replace(good.student, path=str(tmp_path / "none")))
    assert [m.split(";")[0] for m in check_config(missing, world_size=1)] == [
        f"student.path = '{tmp_path}/none' is not a folder"
    ]
    empty = replace(good, discriminator=replace(good.discriminator, path=str(tmp_path)))
    assert [m.split(";")[0] for m in check_config(empty, world_size=1)] == [
        f"discriminator.path = '{tmp_path}' holds no config.json",
        f"discriminator.path = '{tmp_path}' holds no *.safetensors",
    ]
    make_hf_folder(tmp_path / "bare", vocab_size=97, max_position_embeddings=256)
    bare = replace(good, student=replace(good.student, path=str(tmp_path / "bare")))
    assert [m.split(" (")[0] for m in check_config(bare, world_size=1)] == [
        f"student.path = '{tmp_path}/bare' holds no tokenizer"
    ]
    smaller = replace(good, discriminator=replace(good.discriminator, path=str(tmp_path / "bare")))
    assert [m.split(",")[0] for m in check_config(smaller, world_size=1)] == [
        f"discriminator.path = '{tmp_path}/bare' has 97 token ids"
    ]


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_memory_that_servers_may_not_open_is_refused_on_gpus(name: str, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = SGLangConfig(python=sys.executable)
    monkeypatch.setenv(name, "max_split_size_mb:64, expandable_segments: True")
    (problem,) = check_sglang(config, data_size=1, num_own_gpus=1)
    assert problem == (
        f"{name} = 'max_split_size_mb:64, expandable_segments: True' makes memory that a server "
        "may not open; leave expandable_segments out, or use sglang.weight_transport = 'disk'"
    )
    for allowed in (replace(config, weight_transport="disk"), SGLangConfig(("http://a:1",))):
        assert list(check_sglang(allowed, data_size=1, num_own_gpus=1)) == []
    monkeypatch.setenv(name, "expandable_segments:False")
    assert list(check_sglang(config, data_size=1, num_own_gpus=1)) == []


def test_the_shape_of_each_model_is_read_once(
    good: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(good.student.path, other)
    own = replace(good.discriminator, path=str(other), tensor_model_parallel_size=1)
    layout = replace(good.parallel, tensor_model_parallel_size=2)
    read: list[str] = []

    def from_pretrained(
        folder: str, read_config=AutoConfig.from_pretrained, **options: bool
    ) -> PretrainedConfig:
        read.append(folder)
        return read_config(folder, **options)

    monkeypatch.setattr(AutoConfig, "from_pretrained", from_pretrained)
    assert check_config(replace(good, discriminator=own, parallel=layout), world_size=2) == []
    assert read == [good.student.path, str(other)]
