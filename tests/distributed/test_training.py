"""Four ranks at every layout train as one rank does, and read each other's checkpoints."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_gad.config.layout import ParallelConfig
from megatron_gad.training.parallel import Parallel, initialize, shut_down
from megatron_gad.types import PairBatch
from tests.distributed import training_worker
from tests.distributed.results import assert_close, assert_updated_alike, load
from tests.distributed.training_cases import (
    BF16,
    CASES,
    COVERING,
    GATHERED,
    LAYOUTS,
    OPTIMIZER,
    RESUMED,
    SKIPPING,
    VOCAB_SIZE,
    Trained,
    cases_of,
    run_case,
)
from tests.hf_reference import HfScorer
from tests.ranks import run_on_ranks
from tests.tiny import make_hf_folder
from tests.tiny_training import student_batch

# Four query groups of two heads, so that four tensor ranks can have one each.
SHAPE = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4}
MODELS: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen2-tied": {"tie": True},
    "qwen2-tied-deep": {"tie": True, "num_hidden_layers": 8},
    "llama": {"family": "llama"},
    "qwen3": {"family": "qwen3"},
    "teacher": {"family": "qwen3", "vocab_size": VOCAB_SIZE + 6, "hidden_size": 64, "seed": 3},
}
EVERYWHERE = [
    pytest.param(case, layout, marks=() if layout in COVERING else pytest.mark.layouts)
    for layout in LAYOUTS
    for case in cases_of(layout)
]
SCORED = [
    each for each in EVERYWHERE if str(each.values[0]).startswith(("bradley", "cross-entropy"))
]


@pytest.fixture(scope="module")
def results(all_layouts: bool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the worker found."""
    folder = tmp_path_factory.mktemp("training")
    for name, overrides in MODELS.items():
        make_hf_folder(folder / name, **{"vocab_size": VOCAB_SIZE, **SHAPE, **overrides})
    torch.save(vocabulary_inputs(), folder / "vocabulary.pt")
    names = tuple(LAYOUTS) if all_layouts else COVERING
    run_on_ranks(training_worker.main, 4, folder, names)
    return folder


@pytest.fixture(scope="module")
def place() -> Iterator[Parallel]:
    yield initialize(ParallelConfig(), seed=0)
    shut_down()


@pytest.fixture(scope="module")
def expected(results: Path, place: Parallel) -> dict[str, Trained]:
    """What one rank makes of every case."""
    return {name: run_case(name, results, "one-rank", place) for name in CASES}


@pytest.mark.parametrize(("case", "layout"), EVERYWHERE)
def test_metrics_equal_those_of_one_rank(results, expected, case, layout) -> None:
    found: Trained = load(results / f"{case}-{layout}.pt")
    assert {"loss", "grad_norm", "lr"} <= found.metrics.keys()
    assert found.metrics == pytest.approx(expected[case].metrics, rel=1e-5, abs=5e-6)


@pytest.mark.parametrize(("case", "layout"), EVERYWHERE)
def test_rows_equal_those_of_one_rank(results, expected, case, layout) -> None:
    found: Trained = load(results / f"{case}-{layout}.pt")
    torch.testing.assert_close(
        torch.cat(found.rows), torch.cat(expected[case].rows), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(("case", "layout"), SCORED)
def test_values_of_tokens_equal_those_of_transformers(results, case, layout) -> None:
    found: Trained = load(results / f"{case}-{layout}.pt")
    pairs = CASES[case].batch()
    assert isinstance(pairs, PairBatch)
    expected = HfScorer(results / CASES[case].folder).response_values(pairs)
    values = torch.cat(found.token_values)
    for own, mask, wanted in zip(values, pairs.response_mask, expected, strict=True):
        torch.testing.assert_close(own[mask], wanted.detach(), atol=1e-5, rtol=1e-5)
        assert not own[~mask].any()


@pytest.mark.parametrize(("case", "layout"), EVERYWHERE)
def test_gradients_equal_those_of_one_rank(results, expected, case, layout) -> None:
    """Clipped ones, so that the norm has to be right, too.

    Within 2e-6, and within a part of each tensor's largest entry: 2e-6 as well, where data ranks
    only put other rows together, as rows are sorted by length. Tensor and context parallel ranks
    add up in another order, and so does the kernel by hand, in float64. That shows more: see the
    next test.
    """
    found: Trained = load(results / f"{case}-{layout}.pt")
    sizes = LAYOUTS[layout]
    is_cut = sizes.tensor_model_parallel_size * sizes.context_parallel_size > 1
    wanted = expected[case].gradients
    adds_otherwise = is_cut or layout in GATHERED
    assert_close(found.gradients, wanted, relative=1e-5 if adds_otherwise else 2e-6)
    assert max((found.gradients[n] - g).abs().max() for n, g in wanted.items()) < 2e-6


def test_float32_itself_is_as_far_from_float64_as_layouts_are_from_each_other(results, expected):
    """Of each tensor's largest entry, 3e-6 in transformers: no layout can be nearer than that."""
    truth = transformers_gradients(results / "llama", torch.float64)
    theirs = transformers_gradients(results / "llama", torch.float32)
    layouts = [layout for layout in COVERING if "supervised-llama" in cases_of(layout)]
    ours = [load(results / f"supervised-llama-{layout}.pt").gradients for layout in layouts]
    error_of_transformers = largest_error(theirs, truth)
    assert error_of_transformers > 2e-6
    for gradients in (expected["supervised-llama"].gradients, *ours):
        assert largest_error(gradients, truth) < 2 * error_of_transformers


def transformers_gradients(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Those of the supervised case, clipped as there, by transformers and torch."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    batch = student_batch(VOCAB_SIZE)
    attended = torch.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    logits = model(batch.tokens, attention_mask=attended.long()).logits[:, :-1]
    taken = logits.log_softmax(-1).gather(-1, batch.tokens[:, 1:, None]).squeeze(-1)
    mask = batch.response_mask[:, 1:]
    (-(taken * mask).sum() / mask.sum()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER["clip_grad"])
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


def largest_error(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """The largest difference, as a part of the largest entry of its tensor."""
    return max(
        ((found[name].double() - value).abs().max() / value.abs().max()).item()
        for name, value in truth.items()
    )


@pytest.mark.parametrize(("case", "layout"), EVERYWHERE)
def test_updated_weights_equal_those_of_one_rank(results, expected, case, layout) -> None:
    found: Trained = load(results / f"{case}-{layout}.pt")
    assert_updated_alike(found.weights, expected[case].weights)


def test_a_step_that_all_ranks_skip_leaves_no_trace(results, expected) -> None:
    """Though the numbers of one data rank alone are broken."""
    for layout in SKIPPING:
        found: Trained = load(results / f"policy-after-skipped-{layout}.pt")
        unbroken: Trained = load(results / f"policy-tied-{layout}.pt")
        assert found.metrics == unbroken.metrics
        assert all(torch.equal(found.weights[n], w) for n, w in unbroken.weights.items())


def vocabulary_inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    response_mask = torch.rand(3, 6, generator=generator) < 0.6
    response_mask[:, 0] = False
    return {
        "hidden": torch.randn(3, 6, 4, generator=generator),
        "weight": torch.randn(8, 4, generator=generator),
        "tokens": torch.randint(8, (3, 6), generator=generator),
        "response_mask": response_mask,
        "upstream": torch.randn(3, 6, generator=generator),
    }


@pytest.mark.parametrize("vocab_size", [5, 6, 8])
def test_a_sharded_vocabulary_gives_the_logprobs_of_a_whole_one(results, vocab_size) -> None:
    """On four shards of two columns, five tokens leave padding alone for the last."""
    found = load(results / "vocabulary-sharded.pt")[vocab_size]
    inputs = vocabulary_inputs()
    mask, tokens = inputs["response_mask"], inputs["tokens"] % vocab_size
    hidden, weight = (inputs[name].double().requires_grad_() for name in ("hidden", "weight"))
    logp = torch.log_softmax(hidden[:, :-1] @ weight[:vocab_size].t() / 0.8, dim=-1)
    taken = torch.zeros(3, 6, dtype=torch.double)
    taken[:, 1:] = logp.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    uncertainty = torch.zeros(3, 6, dtype=torch.double)
    uncertainty[:, 1:] = -(logp.exp() * logp).sum(-1)
    taken, uncertainty = (torch.where(mask, x, 0.0) for x in (taken, uncertainty))
    (taken * inputs["upstream"]).sum().backward()
    expected = (taken.detach(), uncertainty.detach(), hidden.grad, weight.grad)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-6, rtol=1e-6)


def test_every_rank_knows_its_place(results) -> None:
    ranks = load(results / "place-tp2-dp2.pt")
    assert [rank["data_rank"] for rank in ranks] == [0, 0, 1, 1]
    assert [rank["is_engine_rank"] for rank in ranks] == [True, False, True, False]
    assert [rank["engine_rank"] for rank in ranks] == [0, 0, 2, 2]
    # The stages of a copy of the model follow each other, so that they share a host.
    ranks = load(results / "place-pp2-dp2.pt")
    assert [rank["data_rank"] for rank in ranks] == [0, 0, 1, 1]
    assert [rank["is_engine_rank"] for rank in ranks] == [True, False, True, False]
    assert [rank["engine_rank"] for rank in ranks] == [0, 0, 2, 2]
    assert [rank["is_last_stage"] for rank in ranks] == [False, True, False, True]
    assert [rank["last_stage"] for rank in ranks] == [1, 1, 3, 3]
    ranks = load(results / "place-pp2-cp2.pt")
    assert [rank["data_rank"] for rank in ranks] == [0, 0, 0, 0]
    assert [rank["engine_rank"] for rank in ranks] == [0, 0, 0, 0]
    assert [rank["last_stage"] for rank in ranks] == [2, 3, 2, 3]
    ranks = load(results / "place-pp4.pt")
    assert [rank["last_stage"] for rank in ranks] == [3, 3, 3, 3]
    assert [rank["is_writer"] for rank in ranks] == [True, False, False, False]


@pytest.mark.parametrize(
    ("layout", "data_size"), [("dp4", 4), ("tp2-dp2", 2), ("tp2-sp-pp2", 1), ("cp2-dp2", 2)]
)
def test_data_ranks_share_rows_and_add_up(results, layout, data_size) -> None:
    ranks = load(results / f"place-{layout}.pt")
    size = 8 // data_size
    for rank in ranks:
        first = rank["data_rank"] * size
        assert rank["share"] == list(range(first, first + size))
        assert rank["data"] == list(range(data_size))
        total = sum(range(data_size))
        assert rank["sum"] == [data_size, total]
        assert rank["max"] == data_size - 1
        assert math.isnan(rank["broken_max"])
        assert rank["mean"] == {"a": total / (data_size + total), "b": 0.0}


EVERY_RESUME = [(saved, name) for saved, others in RESUMED.items() for name in (saved, *others)]


@pytest.mark.parametrize(("saved_at", "layout"), EVERY_RESUME)
def test_a_checkpoint_is_loaded_bit_for_bit_at_any_layout(results, saved_at, layout) -> None:
    found = load(results / f"checkpoints-{saved_at}.pt")
    saved, loaded = found["uninterrupted"][0], found[layout][0]
    assert saved.keys() == loaded.keys()
    for part, tensors in saved.items():
        assert_close(loaded[part], tensors)
    moments = saved.get("policy-tied-exp_avg_sq", {"weights": torch.ones(1)})
    assert max(tensor.abs().max() for tensor in moments.values()) > 0


@pytest.mark.parametrize("saved_at", [saved for saved in RESUMED if saved.endswith(BF16)])
def test_in_bf16_a_scorers_head_is_float32_and_learns_on_from_its_moments_anywhere(
    results, saved_at
) -> None:
    """Each step of AdamW moves it by about the learning rate; with moments of others it would not.

    What differs between layouts is bf16's rounding in the gradient.
    """
    found = load(results / f"checkpoints-{saved_at}.pt")
    before, _, after = found["uninterrupted"]
    drawn, expected = (each["bradley-terry"]["score.weight"] for each in (before, after))
    assert drawn.dtype == torch.float32
    assert not torch.equal(drawn, drawn.bfloat16().float())
    for name in (saved_at, *RESUMED[saved_at]):
        head = found[name][2]["bradley-terry"]["score.weight"]
        assert (head - expected).abs().mean() < 0.1 * (expected - drawn).abs().mean()


@pytest.mark.parametrize("layout", RESUMED)
def test_going_on_at_the_same_layout_is_bit_for_bit_the_same(results, layout) -> None:
    found = load(results / f"checkpoints-{layout}.pt")
    _, metrics, after = found["uninterrupted"]
    _, resumed_metrics, resumed = found[layout]
    assert resumed_metrics == metrics
    for part, tensors in after.items():
        assert_close(resumed[part], tensors)


IN_FLOAT32 = [pair for pair in EVERY_RESUME if not pair[0].endswith(BF16)]


@pytest.mark.parametrize(("saved_at", "layout"), IN_FLOAT32)
def test_going_on_at_another_layout_is_the_same_within_rounding(results, saved_at, layout) -> None:
    found = load(results / f"checkpoints-{saved_at}.pt")
    _, metrics, after = found["uninterrupted"]
    _, resumed_metrics, resumed = found[layout]
    for ours, theirs in zip(resumed_metrics, metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=5e-6)
    for part in resumed:
        if not part.endswith("exp_avg_sq"):
            assert_close(resumed[part], after[part], relative=1e-4)
