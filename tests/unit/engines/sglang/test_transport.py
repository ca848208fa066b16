"""Weights on their way: bounded buckets with the values of the tensors, and the plan they meet."""

import multiprocessing
import pickle
import socket
from base64 import b64decode

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from megatron_gad.engines.sglang.transport import (
    FOLDER_PREFIX,
    DiskTransport,
    _pickled,
    fill_buckets,
    make_bucket,
)
from megatron_gad.engines.sglang.weight_plan import WeightPlan
from tests.tiny import make_hf_folder

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b": torch.arange(5, dtype=torch.float32).neg(),
    "large": torch.randn(10, 10, generator=torch.Generator().manual_seed(0)),
    "transposed": torch.arange(12, dtype=torch.float32).view(3, 4).T,
}


def test_buckets_hold_the_values_in_order_and_keep_to_their_size():
    buckets = list(fill_buckets(TENSORS.items(), torch.float32, buffer_size=100))
    assert [[name for name, _ in b.named] for b in buckets] == [
        ["a", "b"],
        ["large"],
        ["transposed"],
    ]
    assert [bucket.flat.numel() for bucket in buckets] == [44, 400, 48]
    for bucket in buckets:
        for name, tensor in bucket.named:
            assert torch.equal(tensor, TENSORS[name])
            assert tensor.untyped_storage().data_ptr() == bucket.flat.untyped_storage().data_ptr()


def test_everything_is_converted_before_it_travels():
    (bucket,) = fill_buckets(TENSORS.items(), torch.bfloat16, buffer_size=10_000)
    assert bucket.flat.numel() == 2 * sum(tensor.numel() for tensor in TENSORS.values())
    for name, tensor in bucket.named:
        assert torch.equal(tensor, TENSORS[name].to(torch.bfloat16))


def test_a_bucket_is_a_copy():
    source = torch.zeros(3)
    bucket = make_bucket([("x", source)])
    source += 1
    assert torch.equal(bucket.named[0][1], torch.zeros(3))


def test_files_hold_the_last_update_only_and_go_with_the_transport(tmp_path):
    transport = DiskTransport(tmp_path / "weights")
    for offset in (0.0, 1.0):
        transport.begin()
        shifted = {name: tensor + offset for name, tensor in TENSORS.items()}
        for bucket in fill_buckets(list(shifted.items())[: 4 - int(offset)], torch.float32, 100):
            transport.stage(bucket)
    (folder,) = (tmp_path / "weights").iterdir()
    held: dict[str, Tensor] = {}
    for file in sorted(folder.iterdir()):
        held |= load_file(file)
    assert sorted(held) == ["a", "b", "large"]
    assert all(torch.equal(tensor, TENSORS[name] + 1) for name, tensor in held.items())
    transport.close()
    assert list((tmp_path / "weights").iterdir()) == []


def test_folders_of_processes_that_were_killed_are_removed(tmp_path):
    first = DiskTransport(tmp_path)
    (own,) = tmp_path.iterdir()
    ended = multiprocessing.get_context("spawn").Process()
    ended.start()
    ended.join()
    start = f"{FOLDER_PREFIX}{socket.gethostname()}_"
    abandoned = [tmp_path / f"{start}{ended.pid}_{end}" for end in ("k3hx09qz", "ab_v1t_0")]
    foreign = tmp_path / f"{start}of_somebody_else"
    for folder in (*abandoned, foreign):
        folder.mkdir()
    second = DiskTransport(tmp_path)
    assert own.is_dir()
    assert foreign.is_dir()
    assert not any(folder.exists() for folder in abandoned)
    first.close()
    second.close()


def test_a_pickled_bucket_is_small_and_gives_the_tensors_back():
    bucket = make_bucket([("x", torch.arange(100_000.0)), ("y", torch.ones(3))])
    data = b64decode(_pickled(bucket))
    assert len(data) < 2000
    received = dict(pickle.loads(data))
    assert torch.equal(received["x"], torch.arange(100_000.0))
    assert torch.equal(received["y"], torch.ones(3))


def test_the_plan_lets_the_models_tensors_through_and_names_the_others(tmp_path):
    plan = WeightPlan.of_folder(make_hf_folder(tmp_path, "qwen2", 97, tie=True))
    bias, norm = "model.layers.0.self_attn.q_proj.bias", "model.norm.weight"
    given = [
        (bias, torch.ones(32)),
        (bias, torch.ones(32)),
        (norm, torch.ones(5)),
        ("lm_head.weight", torch.ones(97, 32)),
    ]
    assert [name for name, _ in plan.fitting(given)] == [bias]
    problems = plan.problems()
    assert problems[:3] == [
        f"{bias} came twice",
        f"{norm} has the shape (5,), not (32,)",
        "lm_head.weight is unexpected",
    ]
    assert "model.embed_tokens.weight is missing" in problems
    assert norm not in [problem.split()[0] for problem in problems[3:]]


def test_the_plan_forgets_the_problems_of_the_last_swap(tmp_path):
    plan = WeightPlan({"x": torch.Size([2])})
    assert list(plan.fitting([("y", torch.ones(2))])) == []
    assert plan.problems() == ["y is unexpected", "x is missing"]
    assert len(list(plan.fitting([("x", torch.ones(2))]))) == 1
    assert plan.problems() == []


def test_a_bucket_cannot_be_empty():
    assert list(fill_buckets([], torch.float32, 100)) == []
    with pytest.raises(IndexError):
        make_bucket([])
