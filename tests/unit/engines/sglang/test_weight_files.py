"""Weights as files: those of the last update only, gone with the transport or with its process."""

import multiprocessing
import socket

import torch
from safetensors.torch import load_file
from torch import Tensor

from megatron_gad.engines.sglang.client import SGLangClient
from megatron_gad.engines.sglang.keeper import WEIGHTS_NAME
from megatron_gad.engines.sglang.versions import ServerApi
from megatron_gad.engines.sglang.weight_files import DiskTransport
from megatron_gad.engines.sglang.weight_plan import WeightPlan

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(5.0), "c": torch.ones(10, 10)}


def test_files_hold_the_last_update_only_and_go_with_the_transport(tmp_path):
    transport = DiskTransport(tmp_path / "weights")
    plan = WeightPlan({name: tensor.shape for name, tensor in TENSORS.items()}, torch.float32, 100)
    updates = [
        list(plan.buckets((name, tensor + shift) for name, tensor in TENSORS.items()))
        for shift in (2, 3)
    ]
    servers = [ServerApi(SGLangClient("http://127.0.0.1:1", 1.0)) for _ in range(2)]
    for buckets in (*updates, updates[0][1:]):  # those of the first update come late again
        for bucket in buckets:
            for server in servers:
                transport.send(server, bucket)
    (folder,) = (tmp_path / "weights").iterdir()
    held: dict[str, Tensor] = {}
    for file in sorted(folder.iterdir()):
        held |= load_file(file)
    assert sorted(held) == ["a", "b", "c"]
    assert all(torch.equal(tensor, TENSORS[name] + 3) for name, tensor in held.items())
    transport.close()
    assert list((tmp_path / "weights").iterdir()) == []


def test_folders_of_processes_that_were_killed_are_removed(tmp_path):
    first = DiskTransport(tmp_path)
    (own,) = tmp_path.iterdir()
    ended = multiprocessing.get_context("spawn").Process()
    ended.start()
    ended.join()
    start = f"{WEIGHTS_NAME}{socket.gethostname()}_"
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
