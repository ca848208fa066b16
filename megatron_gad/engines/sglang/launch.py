"""How SGLang servers are started: their settings, arguments, environment and model folder."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from transformers import PretrainedConfig

from megatron_gad.config.rollout import ArgumentValue, SGLangConfig
from megatron_gad.engines.sglang.server import ServerProcess

# torchrun's description of our ranks, which a server would take for its own.
LAUNCHER_VARIABLES = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PYTHONPATH"),
)
# Among these is one that makes a server wait for ever for a store that our launcher owns.
LAUNCHER_PREFIX = "TORCHELASTIC_"
# Expandable segments, which they set, break sharing memory by handle.
ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
HEALTH_VARIABLE = "SGLANG_HEALTH_CHECK_TIMEOUT"
# A server that is started again between trainers of uneven size would refuse to.
BALANCE_VARIABLE = "SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK"
CPU_ARGUMENTS: dict[str, ArgumentValue] = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "disable_cuda_graph": True,
    "max_total_tokens": 65536,
    "sleep_on_idle": True,
}
GPU_ARGUMENTS: dict[str, ArgumentValue] = {"enable_memory_saver": True}
# The kernels that SGLang takes by itself on a GPU compute in 16 bits only.
FLOAT32_ARGUMENTS: dict[str, ArgumentValue] = {"attention_backend": "triton"}
COMMON_ARGUMENTS: dict[str, ArgumentValue] = {
    "skip_tokenizer_init": True,
    "skip_server_warmup": True,
    "load_format": "dummy",  # the weights come from load_weights alone
}


def count_servers(config: SGLangConfig, num_gpus: int) -> int:
    """Return how many servers a model-parallel group starts; num_gpus: that it has, 0 on a CPU."""
    if config.num_servers is not None:
        return config.num_servers
    return max(1, num_gpus // config.tensor_parallel_size)


def share_of_free(share: float, free: int, total: int) -> float:
    """Return what SGLang has to be told for a share of a GPU's whole memory.

    It takes its share of what is free when it starts (kv_cache_configurator in 0.5.23).

    free, total: bytes of the GPU. Raises ValueError where less is free than that.
    """
    if share * total >= free:
        raise ValueError(
            f"sglang.mem_fraction_static = {share:g} of the GPU's {total / 2**30:.1f} GiB is "
            f"{share * total / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free when the SGLang "
            "server starts; make it smaller, or let more leave the device (schedule.leaves)"
        )
    return share * total / free


def server_arguments(
    config: SGLangConfig,
    device: torch.device,
    dtype: torch.dtype,
    number: int,
    gpus: Sequence[int] = (),
) -> dict[str, ArgumentValue]:
    """Return the arguments of one of the servers of a model-parallel group, by name.

    device: of the group's first rank. number: of the server, from 0. gpus: of the group's ranks on
    this host, which servers share out in this order.

    Raises ValueError where there are too few of them.
    """
    size = config.tensor_parallel_size
    arguments: dict[str, ArgumentValue] = {
        **COMMON_ARGUMENTS,
        "dtype": str(dtype).removeprefix("torch."),
        "tensor_parallel_size": size,
        "max_running_requests": config.max_running_requests,
    }
    if device.type == "cpu":
        arguments |= CPU_ARGUMENTS
    else:
        arguments |= GPU_ARGUMENTS
        arguments |= FLOAT32_ARGUMENTS if dtype == torch.float32 else {}
        arguments |= _placement(config, number, gpus or (device.index or 0,))
    return arguments | {name.replace("-", "_"): v for name, v in config.server_args.items()}


def _placement(config: SGLangConfig, number: int, gpus: Sequence[int]) -> dict[str, ArgumentValue]:
    """Return which GPUs a server takes: the first, and how far it is to the next."""
    size = config.tensor_parallel_size
    own = gpus[number * size : (number + 1) * size]
    steps = {second - first for first, second in pairwise(own)} or {1}
    if len(own) < size or len(steps) > 1:
        raise ValueError(
            f"{count_servers(config, len(gpus))} servers (sglang.num_servers) of "
            f"sglang.tensor_parallel_size = {size} GPUs at equal distances do not fit the GPUs "
            f"{list(gpus)} of the ranks that hold one copy of the model on this host; use "
            "fewer or smaller servers"
        )
    return {"base_gpu_id": own[0], "gpu_id_step": steps.pop()}


def as_flags(arguments: Mapping[str, ArgumentValue]) -> Iterator[str]:
    """Yield arguments as a command line has them; False leaves one out."""
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            yield flag
        elif isinstance(value, list):
            yield from (flag, *map(str, value))
        elif value is not False:
            yield from (flag, str(value))


def server_environment(
    config: SGLangConfig, inherited: Mapping[str, str], device: torch.device
) -> dict[str, str]:
    """Return the environment of a server: this process's, without what describes our ranks."""
    dropped = {*LAUNCHER_VARIABLES, *ALLOCATOR_VARIABLES}
    environment = {
        name: value
        for name, value in inherited.items()
        if name not in dropped and not name.startswith(LAUNCHER_PREFIX)
    }
    # After it, 20 s if not set, the server itself says that it is not healthy.
    environment[HEALTH_VARIABLE] = str(math.ceil(config.health_timeout_s))
    if device.type == "cpu":
        environment["SGLANG_USE_CPU_ENGINE"] = "1"
        # Without it, a server has at most one rank for each NUMA node.
        if config.tensor_parallel_size > 1:
            cores = "|".join(str(rank) for rank in range(config.tensor_parallel_size))
            environment.setdefault("SGLANG_CPU_OMP_THREADS_BIND", cores)
    else:
        environment.setdefault(BALANCE_VARIABLE, "0")
    return environment


def write_model_folder(hf_config: PretrainedConfig, folder: Path) -> Path:
    """Write the model's shape without weights, tokenizer and end tokens.

    A server adds its model's own end tokens to the stop ids of every request.
    """
    hf_config.eos_token_id = None
    hf_config.save_pretrained(folder)
    return folder


def start_server(
    config: SGLangConfig,
    model_folder: Path,
    arguments: Mapping[str, ArgumentValue],
    environment: Mapping[str, str],
    log: Path,
) -> ServerProcess:
    """Start a server; it is not healthy yet."""
    python = config.python or sys.executable
    command = [python, "-m", "sglang.launch_server", "--model-path", str(model_folder)]
    return ServerProcess([*command, *as_flags(arguments)], environment, log)
