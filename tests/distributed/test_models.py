"""Every layout computes what transformers computes, and gives back the weights it was given."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from tests.distributed import models_worker
from tests.distributed.layouts import CASES, EVERYWHERE, HEAD_STD, MIXTURE_CASES, SEED
from tests.ranks import run_on_ranks
from tests.tiny import YARN_ROPE, hub_tensors, make_hf_folder

VOCAB_SIZE = 97


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the worker computed for all cases and layouts."""
    folder = tmp_path_factory.mktemp("models")
    for name, family, tie in (("qwen2", "qwen2", False), ("qwen2-tied", "qwen2", True)):
        make_hf_folder(folder / name, family, VOCAB_SIZE, tie=tie, num_hidden_layers=4)
    for family in ("qwen3", "qwen3_moe", "mixtral"):
        make_hf_folder(folder / family, family, VOCAB_SIZE, num_hidden_layers=4)
    yarn: dict[str, Any] = {"rope_parameters": YARN_ROPE}
    make_hf_folder(folder / "mistral-yarn", "mistral", VOCAB_SIZE, num_hidden_layers=4, **yarn)
    # Dense and sparse layers in turns, the experts' weights not adding up to 1, a tied embedding.
    mixed: dict[str, Any] = {"decoder_sparse_step": 2, "norm_topk_prob": False, "tie": True}
    make_hf_folder(folder / "mixed", "qwen3_moe", VOCAB_SIZE, num_hidden_layers=4, **mixed)
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "tokens": torch.randint(VOCAB_SIZE, (4, 12), generator=generator),
        "logit_weights": torch.randn(4, 12, VOCAB_SIZE, generator=generator),
        "score_weights": torch.randn(4, 12, generator=generator),
    }
    torch.save(inputs, folder / "inputs.pt")
    run_on_ranks(models_worker.main, 4, folder)
    return folder


@pytest.fixture(scope="module")
def references(results: Path) -> dict[str, tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]]:
    """Per case what transformers computes: output, weights and gradients by name."""
    inputs = torch.load(results / "inputs.pt")
    computed = {}
    for case in (*CASES, *MIXTURE_CASES):
        model, head = _reference(results, case)
        hidden = model(inputs["tokens"])
        output = (hidden[0] @ head.t()).squeeze(-1) if head is not None else hidden.logits
        weights = inputs["logit_weights" if head is None else "score_weights"]
        (output * weights).sum().backward()
        parameters: dict[str, Tensor] = dict(model.named_parameters())
        values = _named(model, head, parameters)
        of_parameters = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        gradients = _named(model, None if head is None else head.grad, of_parameters)
        computed[case] = (output.detach(), values, gradients)
    return computed


def _named(
    model: PreTrainedModel, head: Tensor | None, values: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Give a model's tensors, of a scorer if there is a head, the names of a folder's weights."""
    named = hub_tensors(model, values)
    if head is None:
        return named
    return {f"model.{name}": v for name, v in named.items()} | {"score.weight": head.detach()}


def _reference(results: Path, case: str) -> tuple[PreTrainedModel, Tensor | None]:
    """Load a case with transformers; a scorer is the bare network and the head as defined."""
    if not case.startswith("scorer-"):
        return AutoModelForCausalLM.from_pretrained(results / case), None
    model = AutoModel.from_pretrained(results / case.removeprefix("scorer-"))
    drawn = torch.randn(1, 32, generator=torch.Generator().manual_seed(SEED)) * HEAD_STD
    return model, drawn.requires_grad_()


@pytest.mark.parametrize(("case", "layout"), EVERYWHERE)
def test_output_equals_that_of_transformers(results, references, case, layout):
    output = torch.load(results / f"{case}-{layout}.output.pt")
    expected, _, _ = references[case]
    torch.testing.assert_close(output[..., : expected.shape[-1]], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("case", "layout"), EVERYWHERE)
def test_weights_come_back_bit_identical(results, references, case, layout):
    exported, _ = torch.load(results / f"{case}-{layout}.weights.pt")
    _, expected, _ = references[case]
    assert exported.keys() == expected.keys()
    for name, tensor in exported.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(("case", "layout"), EVERYWHERE)
def test_gradients_equal_those_of_transformers(results, references, case, layout):
    _, gradients = torch.load(results / f"{case}-{layout}.weights.pt")
    _, _, expected = references[case]
    for name, gradient in gradients.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(
            gradient,
            expected[name],
            atol=2e-5 * scale,
            rtol=1e-4,
            msg=lambda text, n=name: n + text,
        )
