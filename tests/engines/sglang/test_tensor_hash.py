"""Checksums of tensors on GPUs against SGLang's own kernel, interpreted: ``make test-sglang``."""

import os
import subprocess
from pathlib import Path

import torch

from megatron_gad.engines.sglang.tensor_hash import TILE_WORDS, TILES_AT_ONCE, device_checksum
from tests.engines.sglang.servers import MARKS, SERVER_PYTHON

pytestmark = MARKS
# Triton interprets the kernel on tensors of a host, which the module's asserts would refuse: it is
# compiled without them.
SCRIPT = """
import importlib.util, pathlib, sys, torch
spec = importlib.util.find_spec("sglang.kernels.ops.memory.gpu_tensor_hash")
module = importlib.util.module_from_spec(spec)
source = pathlib.Path(spec.origin).read_text()
exec(compile(source, spec.origin, "exec", optimize=1), vars(module))
for tensor in torch.load(sys.argv[1]):
    print(f"{module.gpu_tensor_hash(tensor):016x}")
"""


def test_a_tensor_has_the_checksum_that_a_gpu_server_gives_it(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5,), (3, 7), (97, 33), (3, TILE_WORDS + 1)]
    tensors = [
        torch.randn(shape, generator=generator).to(dtype)
        for shape in shapes
        for dtype in (torch.float32, torch.bfloat16)
    ]
    torch.save(tensors, tmp_path / "tensors.pt")
    found = subprocess.run(
        [str(SERVER_PYTHON), "-c", SCRIPT, str(tmp_path / "tensors.pt")],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert [device_checksum(tensor) for tensor in tensors] == found.stdout.split()


def test_pieces_make_no_difference(monkeypatch) -> None:
    tensor = torch.arange(3 * TILE_WORDS, dtype=torch.int32)
    assert TILES_AT_ONCE > 3
    whole = device_checksum(tensor)
    monkeypatch.setattr("megatron_gad.engines.sglang.tensor_hash.TILES_AT_ONCE", 1)
    assert device_checksum(tensor) == whole
