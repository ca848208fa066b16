"""The import hook that makes megatron.core run without CUDA."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import tensor_parallel
from megatron.core.jit import jit_fuser
from megatron.core.optimizer.clip_grads import l2_norm_impl
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

from megatron_gad import cpu_seam

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the hook is for the CPU")
REWRITTEN = sorted({*cpu_seam.REQUIRED, *cpu_seam.EDITS})


def source_of(module: str) -> str:
    """Read the installed source of a module."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


@pytest.mark.parametrize("module", REWRITTEN)
def test_every_rule_matches_the_installed_version(module: str) -> None:
    rewritten = cpu_seam.rewrite(module, source_of(module))
    compile(rewritten, module, "exec")
    assert "torch.cuda.synchronize()" not in rewritten
    assert "device='cuda'" not in rewritten and 'device="cuda"' not in rewritten


@pytest.mark.parametrize(
    ("module", "rule"),
    [
        ("megatron.core.tensor_parallel.layers", "current_device"),
        ("megatron.core.jit", "jit_fuser"),
        ("megatron.core.tensor_parallel.random", "get_state"),
    ],
)
def test_a_rule_that_no_longer_matches_is_named_with_the_file(module: str, rule: str) -> None:
    with pytest.raises(RuntimeError, match=rf"rule '{rule}'.*/somewhere/file\.py.*megatron-core=="):
        cpu_seam.rewrite(module, "nothing = 1\n", "/somewhere/file.py")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x = torch.empty(3, device=torch.cuda.current_device())", "torch.device('cpu')"),
        ("x = torch.ones(2, device='cuda')", "device='cpu'"),
        ("x = y.cuda()", "y.to('cpu', )"),
        ("x = y.cuda(non_blocking=True)", "y.to('cpu', non_blocking=True)"),
        ("x = p.type() == 'torch.cuda.HalfTensor'", "'torch.HalfTensor'"),
        ("torch.cuda.synchronize()", "None"),
        ("barrier(device_ids=[torch.cuda.current_device()])", "device_ids=None"),
        ("t = (torch.FloatTensor, torch.cuda.FloatTensor)", "torch.cuda.FloatTensor"),
    ],
)
def test_idioms_become_their_cpu_forms(line: str, expected: str) -> None:
    assert expected in cpu_seam.rewrite("megatron.core.anything", line).replace('"', "'")


def test_modules_outside_megatron_core_are_left_alone() -> None:
    finder = cpu_seam.CpuFinder()
    for name in ("torch", "megatron", "megatron.corely", "megatron.core.distributed.fsdp.src"):
        assert finder.find_spec(name, None) is None


def test_installing_after_megatron_core_was_imported_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(RuntimeError, match="call it first"):
        cpu_seam.install_if_needed()


def test_the_fuser_is_off() -> None:
    assert jit_fuser(torch.relu) is torch.relu


def test_a_forked_random_state_is_its_own_and_moves_on() -> None:
    tracker = CudaRNGStatesTracker()
    tracker.add("forked", 5)
    torch.manual_seed(1)
    with tracker.fork("forked"):
        drawn = torch.rand(3)
    default = torch.rand(3)
    with tracker.fork("forked"):
        drawn_next = torch.rand(3)
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(torch.cat((drawn, drawn_next)), torch.rand(6, generator=generator)[:6])
    assert torch.equal(default, torch.rand(3, generator=torch.Generator().manual_seed(1)))


def test_recomputing_draws_the_same_dropout() -> None:
    tensor_parallel.model_parallel_cuda_manual_seed(3, tp_rank=0, ep_rank=0, etp_rank=0)
    ones = torch.ones(200, requires_grad=True)

    def drop(x: torch.Tensor) -> torch.Tensor:
        tracker: Any = tensor_parallel.get_cuda_rng_tracker()
        with tracker.fork():
            return torch.nn.functional.dropout(x, 0.5)

    dropped = tensor_parallel.checkpoint(drop, False, ones)
    dropped.sum().backward()
    assert ones.grad is not None
    assert 50 < int((dropped == 0).sum()) < 150
    assert torch.equal(ones.grad, dropped.detach())  # the mask over 0.5, in both


def test_the_norm_of_a_large_gradient_is_not_what_float32_sums_make_of_it() -> None:
    gradient = torch.randn(2**24, generator=torch.Generator().manual_seed(0))
    exact = float(gradient.double().norm())
    norm, _ = l2_norm_impl(0, torch.zeros(1), [[gradient]], False)
    assert float(norm) == pytest.approx(exact, rel=1e-6)
    assert float(gradient.norm()) != pytest.approx(exact, rel=1e-5)  # what this guards against
