"""What a GPU holds. Written where no GPU was: none of these bounds has met one."""

from pathlib import Path

import torch

from megatron_gad.training.parallel import Parallel
from megatron_gad.training.vocab_parallel import VocabShard, response_logprobs
from tests.tiny_training import make_student


def head_peak(num_tokens: int, chunk_size: int) -> int:
    """Bytes of the head's forward and backward in bf16, with 32,000 columns, beyond its inputs."""
    device = torch.device("cuda")
    hidden = torch.randn(1, num_tokens, 64, device=device, dtype=torch.bfloat16).requires_grad_()
    weight = torch.randn(32_000, 64, device=device, dtype=torch.bfloat16).requires_grad_()
    tokens = torch.randint(32_000, (1, num_tokens), device=device)
    mask = torch.arange(num_tokens, device=device)[None] > 0
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    logprobs, _ = response_logprobs(
        hidden, weight, tokens, mask, VocabShard(0, 32_000), chunk_size=chunk_size
    )
    logprobs.sum().backward()
    return torch.cuda.max_memory_allocated() - before


def test_the_heads_peak_grows_with_the_chunk_and_not_with_the_tokens() -> None:
    head_peak(64, 64)  # what libraries allocate once
    column_bytes = 32_000 * 4
    few, many = head_peak(1024, 128), head_peak(8192, 128)
    assert many - few < 0.05 * 7168 * column_bytes
    large = head_peak(8192, 512)
    assert 384 * column_bytes <= large - many <= 4 * 384 * column_bytes


def test_a_sleeping_trainer_leaves_the_device(folder: Path, place: Parallel) -> None:
    student = make_student(folder, place)
    awake = torch.cuda.memory_allocated()
    parameters = (p for chunk in student.modules_to_read() for p in chunk.parameters())
    held = sum(p.numel() * p.element_size() for p in parameters)
    student.sleep()
    assert awake - torch.cuda.memory_allocated() >= held
