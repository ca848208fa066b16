"""What the tests against a real SGLang server on the CPU share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_gad.config.rollout import SGLangConfig
from megatron_gad.engines.sglang.engine import SGLangEngine
from megatron_gad.types import Group, Prompt, Rollout

ROOT = Path(__file__).parents[3]
SERVER_PYTHON = ROOT / ".venv-sglang/bin/python"
MARKS = [
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
    start_timeout_s=900,
    request_timeout_s=120,
    health_timeout_s=20,
    update_weight_buffer_size=8000,  # less than the embedding, so that there are many buckets
    verify_interval=1,
    max_running_requests=32,
    server_args={"max_total_tokens": 8192},
)


def make_prompts(count: int) -> list[Prompt]:
    """Return prompts of different lengths."""
    return [Prompt(7 * n, (), "", tuple(range(5 + n, 9 + 2 * n)), ()) for n in range(count)]


def reference(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def weights_of(folder: Path) -> Iterator[tuple[str, Tensor]]:
    return reference(folder).named_parameters()


@torch.no_grad()
def gaps_of(
    folder: Path, groups: list[Group], temperature: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return |engine - transformers| of all sampled tokens, in nats; dtype: of transformers."""
    model = reference(folder, dtype)
    gaps = []
    for group in groups:
        for rollout in group.rollouts:
            ids = torch.tensor([group.prompt.ids + rollout.ids])
            logits = model(input_ids=ids).logits[0, len(group.prompt.ids) - 1 : -1].float()
            logprobs = torch.log_softmax(logits / temperature, dim=-1)
            expected = logprobs.gather(1, torch.tensor(rollout.ids)[:, None])[:, 0]
            gaps.append((torch.tensor(rollout.rollout_logprobs) - expected).abs())
    return torch.cat(gaps)


def largest_gap(folder: Path, groups: list[Group], temperature: float) -> float:
    """Return the largest of the gaps, in nats."""
    return float(gaps_of(folder, groups, temperature).max())


def rollouts_of(groups: list[Group]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group.rollouts]


def processes_of(engine: SGLangEngine) -> list[psutil.Process]:
    """Return all processes of the engine's servers, the keepers included."""
    return processes_in({r.process.group for r in engine.replicas if r.process is not None})


def processes_in(groups: set[int]) -> list[psutil.Process]:
    """Return all processes of some process groups."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) in groups:
                found.append(process)
        except ProcessLookupError:
            continue
    return found


def harm_scheduler(processes: list[psutil.Process], harm: signal.Signals) -> None:
    """Send a signal to the process of the server that computes."""
    schedulers = [p for p in processes if "schedul" in p.name()]
    assert len(schedulers) == 1, [p.name() for p in processes]
    schedulers[0].send_signal(harm)
