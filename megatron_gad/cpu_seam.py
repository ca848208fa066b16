"""The seam that lets megatron.core run on a machine without CUDA.

Megatron-Core names the CUDA device literally in about a hundred places. Where no CUDA device
exists, an import hook rewrites those fixed idioms while the sources of megatron.core are loaded;
torch and the files on disk stay as they are. Where CUDA exists nothing of this is active.

Every command that trains calls ``install_if_needed`` before it imports what imports megatron.core.
"""

import importlib.machinery
import re
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import CodeType, ModuleType
from typing import NamedTuple

import torch

PACKAGE = "megatron.core"
# Megatron's own FSDP is not used here, is imported with the rest, and is left as it is.
UNTOUCHED = "megatron.core.distributed.fsdp."


class Rule(NamedTuple):
    """One rewrite: every match of the regular expression becomes the replacement."""

    name: str
    pattern: str
    replacement: str


# Tried in this order on every module of megatron.core: the earlier rules take the longer forms.
IDIOMS = (
    Rule("barrier_device", r"device_ids=\[torch\.cuda\.current_device\(\)\]", "device_ids=None"),
    Rule("set_device", r"torch\.cuda\.set_device\(rank % torch\.cuda\.device_count\(\)\)", "None"),
    Rule("current_device", r"torch\.cuda\.current_device\(\)", 'torch.device("cpu")'),
    Rule("tensor_type", r"(['\"])torch\.cuda\.(Float|Half|BFloat16)Tensor\b", r"\1torch.\2Tensor"),
    Rule("device_argument", r"\bdevice=(['\"])cuda\1", 'device="cpu"'),
    Rule("init_data", r"\binit_data\((['\"])cuda\1\)", 'init_data("cpu")'),
    Rule("pin_memory", r"\bpin_memory=True\b", "pin_memory=False"),
    Rule("to_cuda_argument", r"\.cuda\(torch\.device\(\"cpu\"\)\)", ".cpu()"),
    Rule("to_cuda", r"(?<!torch)\.cuda\(", '.to("cpu", '),
    Rule("synchronize", r"torch\.cuda\.synchronize\(\)", "None"),
)

# The stock tracker of random states, over the CPU generator instead of the CUDA one.
CPU_GENERATOR = (
    Rule(
        "get_state",
        r"torch\.cuda\.random\.get_rng_state\(device=device\)",
        "torch.get_rng_state()",
    ),
    Rule(
        "set_state",
        r"(?m)^    if hasattr\(_C, '_cuda_setRNGState'\)",
        r"    return torch.set_rng_state(new_state)\n\g<0>",
    ),
    Rule("add_state", r"torch\.cuda\.get_rng_state\(\)", "torch.get_rng_state()"),
    Rule("seed", r"torch\.cuda\.manual_seed\((?=data_parallel_seed|seed)", "torch.manual_seed("),
    # Inside a fork the CPU generator is the one in use: that it moves is no mistake.
    Rule(
        "fork_warning",
        r"if not torch\.all\(cpu_rng_state == torch\.get_rng_state\(\)\)\.item\(\):",
        "if False:",
    ),
)

# torch.compile would import and start a compiler.
NO_FUSER = (
    Rule(
        "jit_fuser",
        r"jit_fuser = torch\.(compile|jit\.script)\b",
        "jit_fuser = lambda function: function",
    ),
)

# A checkpoint is written by threads in place of processes. Processes keep CUDA out of the writing;
# without it they only cost: the first save waits for one that imports everything anew, and a fork
# of a process with OpenMP threads may hang.
WRITER_THREADS = (
    Rule(
        "writer_processes",
        r'\bmp\.get_context\("(fork|spawn)"\)',
        '__import__("multiprocessing.dummy", fromlist=["dummy"])',
    ),
)

# Token counts of experts are copied to the host on a stream of their own.
NO_STREAMS = (
    Rule("is_side_stream", r"torch\.cuda\.current_stream\(\) != self\.cuda_dtoh_stream", "False"),
    Rule("new_stream", r"torch\.cuda\.Stream\(\)", "None"),
    Rule("use_stream", r"with torch\.cuda\.stream\(self\.cuda_dtoh_stream\):", "if True:"),
    Rule("record_event", r"self\.cuda_dtoh_stream\.record_event\(\)", "None"),
    Rule("wait_event", r"self\.d2h_event\.synchronize\(\)", "None"),
)

# Ranks send each other as many tokens as the router says; gloo gathers parts of one size only.
UNEVEN_PARTS = (
    Rule(
        "uneven_gather",
        r"torch\.distributed\.all_gather\(output_tensor_list, input_, group=group\)",
        "[torch.distributed.broadcast(part.copy_(input_) if source == group.rank() else part, "
        "group=group, group_src=source) for source, part in enumerate(output_tensor_list)]",
    ),
    Rule(
        "uneven_scatter",
        r"torch\.distributed\.reduce_scatter\(output, input_tensor_list, group=group\)",
        "[torch.distributed.reduce(output.copy_(part) if target == rank else part.clone(), "
        "group=group, group_dst=target) for target, part in enumerate(input_tensor_list)]",
    ),
)

# Collectives take the counts as numbers on the host, which is where they are.
COUNTS_ON_HOST = (
    Rule("counts", r"torch\.is_tensor\(tensor\) and tensor\.is_cuda", "torch.is_tensor(tensor)"),
)

# On the CPU torch adds the squares of a tensor up in float32, a few long sums in a row: of the 28
# million entries of a real embedding's gradient it loses a thousandth, and clipping with it.
WIDE_NORM = (
    Rule(
        "l2_norm",
        r"\(torch\.norm\(tensor\)\) for tensor",
        "torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor",
    ),
)

# Extra rules of single modules; all of them have to match.
EDITS = {
    "megatron.core.dist_checkpointing.strategies.filesystem_async": WRITER_THREADS,
    "megatron.core.jit": NO_FUSER,
    "megatron.core.tensor_parallel.mappings": UNEVEN_PARTS,
    "megatron.core.tensor_parallel.random": CPU_GENERATOR,
    "megatron.core.transformer.moe.moe_utils": COUNTS_ON_HOST,
    "megatron.core.transformer.moe.token_dispatcher": NO_STREAMS,
    "megatron.core.utils": WIDE_NORM,
}

# The modules the project runs through, with the idioms that have to be found in them. An idiom that
# is gone means that this version of megatron.core is written differently and needs new rules.
REQUIRED = {
    "megatron.core.dist_checkpointing.exchange_utils": ("device_argument", "init_data", "to_cuda"),
    "megatron.core.dist_checkpointing.strategies.filesystem_async": ("synchronize",),
    "megatron.core.dist_checkpointing.strategies.fully_parallel": ("synchronize",),
    "megatron.core.dist_checkpointing.strategies.state_dict_saver": (
        "current_device",
        "device_argument",
    ),
    "megatron.core.distributed.param_and_grad_buffer": ("current_device",),
    "megatron.core.models.common.embeddings.rope_utils": ("pin_memory", "to_cuda"),
    "megatron.core.models.common.embeddings.rotary_pos_embedding": ("current_device",),
    "megatron.core.models.common.language_module.language_module": ("to_cuda",),
    "megatron.core.optimizer.clip_grads": ("tensor_type", "device_argument"),
    "megatron.core.optimizer.distrib_optimizer": ("tensor_type", "current_device"),
    "megatron.core.optimizer.optimizer": ("tensor_type", "device_argument"),
    "megatron.core.pipeline_parallel.p2p_communication": ("current_device", "synchronize"),
    "megatron.core.pipeline_parallel.schedules": ("device_argument",),
    "megatron.core.tensor_parallel.layers": ("current_device",),
    "megatron.core.tensor_parallel.mappings": ("current_device",),
    "megatron.core.tensor_parallel.utils": ("current_device",),
    "megatron.core.transformer.moe.router": ("current_device",),
}


def install_if_needed() -> None:
    """Put the import hook in place where there is no CUDA device; further calls do nothing.

    Raises:
        RuntimeError: megatron.core was imported before, so it cannot be rewritten any more.
    """
    if not is_missing():
        return
    if PACKAGE in sys.modules:
        raise RuntimeError(
            f"{PACKAGE} was imported before megatron_gad.cpu_seam.install_if_needed() was called, "
            "and this machine has no CUDA device; call it first"
        )
    # Without CUDA these packages do not exist, so that their absence is no news.
    warnings.filterwarnings("ignore", r"(Transformer Engine and )?Apex (is|are) not installed")
    sys.meta_path.insert(0, CpuFinder())


def is_missing() -> bool:
    """Return whether this machine needs the hook, which is not in place."""
    is_installed = any(isinstance(finder, CpuFinder) for finder in sys.meta_path)
    return not torch.cuda.is_available() and not is_installed


class CpuFinder(MetaPathFinder):
    """Finds the modules of megatron.core as usual and loads them through CpuLoader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the module's spec with the rewriting loader; None for everything outside."""
        if not f"{fullname}.".startswith(f"{PACKAGE}.") or f"{fullname}.".startswith(UNTOUCHED):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = CpuLoader(fullname, spec.loader.path)
        return spec


class CpuLoader(importlib.machinery.SourceFileLoader):
    """Compiles a module from its rewritten source."""

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of the rewritten module."""
        path = self.get_filename(fullname)
        text = rewrite(fullname, self.get_data(path).decode("utf-8"), path)
        return compile(text, path, "exec", dont_inherit=True)


def rewrite(fullname: str, source: str, path: str = "") -> str:
    """Apply the rules of a module to its source.

    Args:
        fullname: the module's dotted name.
        source: its text.
        path: the file it was read from, named in the error.

    Raises:
        RuntimeError: a rule that has to match this module does not; names the file and the rule.
    """
    required = {*REQUIRED.get(fullname, ()), *(rule.name for rule in EDITS.get(fullname, ()))}
    for rule in (*EDITS.get(fullname, ()), *IDIOMS):
        source, num_matches = re.subn(rule.pattern, rule.replacement, source)
        if num_matches == 0 and rule.name in required:
            raise RuntimeError(
                f"rule {rule.name!r} of megatron_gad.cpu_seam no longer matches "
                f"{path or fullname}: this version of megatron-core cannot run without CUDA; "
                "install megatron-core==0.16.1"
            )
    return source
