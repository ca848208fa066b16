"""A frozen teacher on one rank, against transformers. Other layouts: tests/oracle."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_gad.algorithms.divergence import divergence_loss
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.further_stages import Divergence
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.teacher import Teacher
from megatron_gad.types import Batch
from tests.tiny import make_hf_folder
from tests.tiny_training import gradients, make_student, student_batch

V = 97
TEMPERATURE = 0.8
COMPUTE = {
    "padded": ComputeConfig(micro_batch_size=3, pack_sequences=False, logprob_chunk_size=4),
    "packed": ComputeConfig(micro_batch_size=2, pack_sequences=True),
}


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of another family, wider, deeper, and with more rows in its vocabulary."""
    folder = tmp_path_factory.mktemp("teacher")
    return make_hf_folder(folder, "llama", V + 6, seed=3, hidden_size=48, num_hidden_layers=3)


def table(folder: Path, batch: Batch, temperature: float) -> tuple[Tensor, torch.nn.Module]:
    """Log-probabilities of all tokens at the response tokens, [N, V], by transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    logits = model(batch.tokens).logits[:, :-1] / temperature
    return torch.log_softmax(logits[batch.response_mask[:, 1:]][:, :V], dim=-1), model


@pytest.mark.parametrize("compute", COMPUTE.values(), ids=COMPUTE.keys())
@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jensen_shannon"])
def test_loss_and_gradients_equal_those_of_transformers(
    place: Parallel, qwen2: Path, larger: Path, kind: Divergence, compute: ComputeConfig
) -> None:
    batch, student = student_batch(V), make_student(qwen2, place, compute=compute)
    teacher = Teacher(larger, student)
    asked, states = teacher.states(batch)
    output = student.train(asked, divergence_loss, TEMPERATURE, teacher.taught(states, kind))

    (logp, model), (logq, _) = table(qwen2, batch, TEMPERATURE), table(larger, batch, 1.0)
    logq = logq.detach()
    logm = ((logp.exp() + logq.exp()) / 2).log()
    reverse, forward = logp.exp() * (logp - logq), logq.exp() * (logq - logp)
    both = (logp.exp() * (logp - logm) + logq.exp() * (logq - logm)) / 2
    terms = {"reverse_kl": reverse, "forward_kl": forward, "jensen_shannon": both}[kind]
    loss = terms.sum(dim=-1).mean()
    loss.backward()
    assert output.metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    taken = logp.gather(1, batch.tokens[batch.response_mask][:, None]).squeeze(1)
    torch.testing.assert_close(output.rows[batch.response_mask], taken.detach(), atol=1e-5, rtol=0)
    for name, gradient in gradients(student).items():
        expected = model.get_parameter(name).grad
        assert expected is not None, name
        scale = float(expected.abs().max())
        assert (gradient - expected).abs().max() <= 3e-5 * scale, name


def test_its_logprobs_are_those_of_transformers_and_it_rests_on_the_host(
    place: Parallel, qwen2: Path, larger: Path
) -> None:
    batch, student = student_batch(V), make_student(qwen2, place, compute=COMPUTE["padded"])
    teacher = Teacher(larger, student)
    model = AutoModelForCausalLM.from_pretrained(larger, dtype=torch.float32)
    logp = torch.log_softmax(model(batch.tokens).logits[:, :-1].detach(), dim=-1)
    taken = logp.gather(-1, batch.tokens[:, 1:, None]).squeeze(-1)
    expected = torch.where(batch.response_mask[:, 1:], taken, 0.0)
    for _ in range(2):
        torch.testing.assert_close(teacher.logprobs(batch)[:, 1:], expected, atol=1e-5, rtol=0)
        assert teacher.device_bytes() == 0
    assert teacher.has_finite_weights()


def test_weights_that_are_no_numbers_are_noticed(
    place: Parallel, qwen2: Path, tmp_path: Path
) -> None:
    broken: Any = AutoModelForCausalLM.from_pretrained(qwen2, dtype=torch.float32)
    with torch.no_grad():
        broken.get_output_embeddings().weight[3, 1] = float("nan")
    broken.save_pretrained(tmp_path)
    student = make_student(qwen2, place, compute=COMPUTE["padded"])
    assert not Teacher(tmp_path, student).has_finite_weights()
    assert Teacher(qwen2, student).has_finite_weights()
