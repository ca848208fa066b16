"""Which GPUs a server gets."""

import pytest
import torch

from megatron_gad.engines.sglang.launch import SGLangConfig, server_arguments


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
