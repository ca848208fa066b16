"""Checks of the section of the SGLang servers."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import torch

from megatron_gad.checks.found import ModelFolder
from megatron_gad.checks.secrets import masked
from megatron_gad.checks.values import DEADLINE, NOT_NEGATIVE, POSITIVE, violations
from megatron_gad.config.rollout import SGLangConfig
from megatron_gad.config.run_control import WatchdogConfig
from megatron_gad.engines.sglang.launch import ALLOCATOR_VARIABLES, count_servers
from megatron_gad.environment import environment_variable

# Arguments of a server that the run has to choose itself, and what decides them.
CHOSEN = {
    "model_path": "the model is that of student.path",
    "host": "servers listen on 127.0.0.1",
    "port": "each server takes a free port",
    "dtype": "it follows compute.bf16",
    "load_format": "the weights come from the trainer",
    "skip_tokenizer_init": "token ids go in and out",
    "tp_size": "use sglang.tensor_parallel_size",
    "tensor_parallel_size": "use sglang.tensor_parallel_size",
    "pp_size": "servers are tensor-parallel only",
    "pipeline_parallel_size": "servers are tensor-parallel only",
    "nnodes": "a server is on one host",
    "device": "it is the trainer's",
    "base_gpu_id": "servers take the GPUs of the ranks that hold one copy of the model",
    "gpu_id_step": "servers take the GPUs of the ranks that hold one copy of the model",
    "mem_fraction_static": "use sglang.mem_fraction_static",
    "max_running_requests": "use sglang.max_running_requests",
    "dp_size": "use sglang.num_servers",
    "data_parallel_size": "use sglang.num_servers",
}


def check_deadlines(sglang: SGLangConfig, watchdog: WatchdogConfig) -> Iterator[str]:
    """Yield the deadlines that would end a run before a failing server is brought back."""
    for own in ("request_timeout_s", "start_timeout_s"):
        waits, allowed = getattr(sglang, own), watchdog.phase_s
        if 0 < allowed <= waits:
            yield (
                f"watchdog.phase_s = {allowed:g} ends the run before sglang.{own} = {waits:g} is "
                "over, after which a server would be brought back; make the first longer (0: never "
                "ends), or the second shorter"
            )


def check_served_student(student: ModelFolder) -> Iterator[str]:
    """Yield why a server would sample from another model than the student."""
    experts = student.mixture
    dense = [n for n, sparse in enumerate(experts.sparse_layers) if not sparse] if experts else []
    if dense:
        yield (
            f"{student.named} has no experts in its layers {dense}, but SGLang builds all "
            "layers of this architecture with experts; sample with rollout.engine = 'embedded'"
        )


def check_sglang(sglang: SGLangConfig, data_size: int, num_own_gpus: int) -> Iterator[str]:
    """Yield what is wrong with the SGLang servers.

    data_size: data ranks, which share URLs out. num_own_gpus: of the ranks that hold one copy of
        the model, those on one host, on whose GPUs its servers are.
    """
    positive = ("tensor_parallel_size", "update_weight_buffer_size")
    positive += ("max_running_requests", "mem_fraction_static")
    positive += ("num_servers",) if sglang.num_servers is not None else ()
    rules = dict.fromkeys(positive, POSITIVE)
    deadlines = ("start_timeout_s", "request_timeout_s", "health_timeout_s")
    rules |= dict.fromkeys(deadlines, DEADLINE)
    rules |= {"verify_interval": NOT_NEGATIVE}
    yield from violations("sglang", sglang, rules)
    if sglang.mem_fraction_static >= 1:
        yield (
            f"sglang.mem_fraction_static = {sglang.mem_fraction_static} leaves nothing of the "
            "device to training; give a value below 1, 0.5 is the default"
        )
    yield from _check_urls(sglang, data_size)
    yield from _check_gpus(sglang, num_own_gpus)
    if torch.cuda.is_available() and not sglang.urls:
        yield from _check_sharing(sglang)
    for name, reason in CHOSEN.items():
        if name in {given.replace("-", "_") for given in sglang.server_args}:
            yield f"sglang.server_args sets {name}, which is not free: {reason}; leave it out"
    if sglang.python and not Path(sglang.python).is_file():
        yield f"sglang.python = {sglang.python!r} is no file; name the interpreter that has SGLang"
    if not sglang.urls and not sglang.python and find_spec("sglang") is None:
        yield (
            "rollout.engine = 'sglang', but that package is not installed; install "
            "megatron-gad[sglang], name an interpreter that has it in sglang.python, name running "
            "servers in sglang.urls, or use 'embedded'"
        )


def _check_gpus(sglang: SGLangConfig, num_own_gpus: int) -> Iterator[str]:
    """Yield why the servers do not fit the GPUs that they share."""
    if sglang.tensor_parallel_size < 1:
        return
    num_servers = max(1, count_servers(sglang, num_own_gpus))
    num_gpus = num_servers * sglang.tensor_parallel_size
    if not sglang.urls and num_gpus > num_own_gpus:
        yield (
            f"sglang.num_servers {num_servers} x sglang.tensor_parallel_size "
            f"{sglang.tensor_parallel_size} = {num_gpus} GPUs, but one copy of the model has "
            f"{num_own_gpus} rank(s) on a host, whose GPUs its servers share; use fewer or smaller "
            "servers"
        )


def _check_urls(sglang: SGLangConfig, data_size: int) -> Iterator[str]:
    """Yield what is wrong with the addresses, and what does not go with them."""
    if len(sglang.urls) % data_size:
        yield (
            f"sglang.urls names {len(sglang.urls)} servers, which cannot be shared out evenly "
            f"between {data_size} data ranks; name a multiple of {data_size}, or none"
        )
    if sglang.urls and sglang.weight_transport == "tensor":
        yield (
            "sglang.weight_transport = 'tensor' shares memory with servers that the run starts, "
            "but sglang.urls is set; use 'broadcast' or 'disk', or leave urls out"
        )
    for url in sglang.urls:
        if not _is_address(url):
            yield f"sglang.urls has {masked(url)!r}, which is no address; give http://host:port"
    if sglang.urls and sglang.server_args:
        yield (
            f"sglang.server_args sets {', '.join(sglang.server_args)} of servers that the run "
            "starts, but sglang.urls is set; start those servers with the arguments, or leave urls "
            "out"
        )


def _is_address(url: str) -> bool:
    """Return whether a URL names a host, and nothing that would be left out of requests."""
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    is_more = bool(parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc)
    return parts.scheme == "http" and has_host and not is_more


def _check_sharing(sglang: SGLangConfig) -> Iterator[str]:
    """Yield why weights would not get to servers on the trainer's own GPUs."""
    if sglang.weight_transport == "broadcast":
        yield (
            "sglang.weight_transport = 'broadcast' needs a GPU for each of its ranks, but servers "
            "that the run starts share the trainer's; use 'tensor', or name servers on other GPUs "
            "in sglang.urls"
        )
    for name in ALLOCATOR_VARIABLES if sglang.weight_transport != "disk" else ():
        value = environment_variable(name)
        if "expandable_segments:true" in value.lower().replace(" ", ""):
            yield (
                f"{name} = {value!r} makes memory that a server may not open; leave "
                "expandable_segments out, or use sglang.weight_transport = 'disk'"
            )
