"""Which GPUs a server gets, how much of them, and how its arguments are written."""

import pytest
import torch

from megatron_gad.config.rollout import SGLangConfig
from megatron_gad.engines.sglang.launch import (
    as_flags,
    count_servers,
    server_arguments,
    server_environment,
    share_of_free,
)


def placement(num_servers: int, size: int, gpus: tuple[int, ...]) -> list[tuple[object, object]]:
    """Where the servers of one group go."""
    config = SGLangConfig(num_servers=num_servers, tensor_parallel_size=size)
    device = torch.device("cuda", gpus[0] if gpus else 3)
    arguments = [
        server_arguments(config, device, torch.bfloat16, number, gpus)
        for number in range(num_servers)
    ]
    return [(each["base_gpu_id"], each["gpu_id_step"]) for each in arguments]


def test_servers_share_out_the_gpus_of_the_ranks_that_hold_one_copy_of_the_model() -> None:
    # TP4 on the second half of a host.
    assert placement(2, 2, (4, 5, 6, 7)) == [(4, 1), (6, 1)]
    # TP2 x PP2 x DP2: the second stage of the first copy is two ranks on.
    assert placement(2, 2, (0, 1, 4, 5)) == [(0, 1), (4, 1)]
    # PP2 x DP2.
    assert placement(1, 2, (1, 3)) == [(1, 2)]
    assert placement(1, 1, ()) == [(3, 1)]


@pytest.mark.parametrize(
    ("num_servers", "size", "gpus"), [(2, 1, (0,)), (1, 2, (0,)), (1, 4, (0, 1, 4, 5))]
)
def test_too_few_gpus_or_unequal_distances_are_refused(num_servers, size, gpus) -> None:
    with pytest.raises(ValueError, match=r"use fewer or smaller servers"):
        placement(num_servers, size, gpus)


@pytest.mark.parametrize(
    ("num_gpus", "size", "expected"), [(4, 1, 4), (4, 2, 2), (2, 4, 1), (0, 1, 1), (0, 2, 1)]
)
def test_a_group_starts_as_many_servers_as_its_gpus_have_room_for(num_gpus, size, expected):
    assert count_servers(SGLangConfig(tensor_parallel_size=size), num_gpus) == expected
    assert count_servers(SGLangConfig(num_servers=3), num_gpus) == 3


def test_a_share_of_the_whole_gpu_is_told_as_one_of_what_is_free() -> None:
    gib = 2**30
    assert share_of_free(0.5, free=80 * gib, total=80 * gib) == 0.5
    # 40 of the 50 GiB that are free.
    assert share_of_free(0.5, free=50 * gib, total=80 * gib) == pytest.approx(0.8)
    with pytest.raises(ValueError, match=r"of the GPU's 80.0 GiB is 40.0 GiB, and 30.0 GiB are"):
        share_of_free(0.5, free=30 * gib, total=80 * gib)


def test_arguments_are_written_as_a_command_line_has_them() -> None:
    given = {"a_b": 3, "c": True, "d": False, "bs": [1, 2, 4]}
    assert [*as_flags(given)] == ["--a-b", "3", "--c", "--bs", "1", "2", "4"]


@pytest.mark.parametrize(("dtype", "expected"), [(torch.float32, "triton"), (torch.bfloat16, None)])
def test_on_a_gpu_float32_gets_kernels_that_compute_in_it(dtype, expected) -> None:
    device = torch.device("cuda", 0)
    arguments = server_arguments(SGLangConfig(), device, dtype, number=0, gpus=(0,))
    assert arguments.get("attention_backend") == expected
    chosen = SGLangConfig(server_args={"attention-backend": "flex_attention"})
    arguments = server_arguments(chosen, device, dtype, number=0, gpus=(0,))
    assert arguments["attention_backend"] == "flex_attention"


def test_servers_on_gpus_may_find_them_unevenly_filled() -> None:
    environment = server_environment(SGLangConfig(), {}, torch.device("cuda", 0))
    assert environment["SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK"] == "0"


def test_a_servers_own_patience_is_that_of_the_run() -> None:
    config = SGLangConfig(health_timeout_s=32.5, tensor_parallel_size=2)
    inherited = {"PATH": "/bin", "RANK": "3", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    environment = server_environment(config, inherited, torch.device("cpu"))
    assert environment == {
        "PATH": "/bin",
        "SGLANG_HEALTH_CHECK_TIMEOUT": "33",
        "SGLANG_USE_CPU_ENGINE": "1",
        "SGLANG_CPU_OMP_THREADS_BIND": "0|1",
    }
