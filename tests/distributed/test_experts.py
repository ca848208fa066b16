"""Mixtures of experts on four ranks train as on one, and their checkpoints fit every layout."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_gad.config.layout import ParallelConfig
from megatron_gad.training.parallel import Parallel, initialize, shut_down
from tests.distributed import experts_worker
from tests.distributed.experts_cases import CASES, COVERING, LAYOUTS, RESUMED, cases_of
from tests.distributed.results import assert_close, assert_updated_alike, load
from tests.distributed.test_conversion import make_scorer
from tests.distributed.training_cases import VOCAB_SIZE, Trained, train_case
from tests.ranks import run_on_ranks
from tests.tiny import make_hf_folder

EVERYWHERE = [
    pytest.param(case, layout, marks=() if layout in COVERING else pytest.mark.layouts)
    for layout in LAYOUTS
    for case in cases_of(layout)
]
EVERY_RESUME = [(saved, name) for saved, others in RESUMED.items() for name in others]
# Four query groups of two heads, so that four tensor ranks can have one each.
SHAPE: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4}
MODELS = (
    ("qwen3_moe", "qwen3_moe", 4),
    ("qwen3_moe-deep", "qwen3_moe", 8),
    ("mixtral", "mixtral", 4),
    ("scorer", "mixtral", 4),
)


@pytest.fixture(scope="module")
def results(all_layouts: bool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the worker found."""
    folder = tmp_path_factory.mktemp("experts")
    for name, family, num_layers in MODELS:
        make_hf_folder(folder / name, family, VOCAB_SIZE, num_hidden_layers=num_layers, **SHAPE)
    make_scorer(folder / "scorer")
    names = tuple(LAYOUTS) if all_layouts else COVERING
    run_on_ranks(experts_worker.main, 4, folder, names)
    return folder


@pytest.fixture(scope="module")
def place() -> Iterator[Parallel]:
    yield initialize(ParallelConfig(), seed=0)
    shut_down()


@pytest.fixture(scope="module")
def expected(results: Path, place: Parallel) -> dict[str, Trained]:
    """What one rank makes of every case."""
    return {
        name: train_case(case, results, ParallelConfig(), place) for name, case in CASES.items()
    }


@pytest.mark.parametrize(("case", "layout"), EVERYWHERE)
def test_metrics_rows_gradients_and_weights_equal_those_of_one_rank(
    results, expected, case, layout
):
    """Gradients are clipped ones, so that the norm over experts and the rest has to be right."""
    found: Trained = load(results / f"{case}-{layout}.pt")
    assert found.metrics == pytest.approx(expected[case].metrics, rel=1e-5, abs=5e-6)
    torch.testing.assert_close(
        torch.cat(found.rows), torch.cat(expected[case].rows), atol=1e-5, rtol=1e-5
    )
    wanted = expected[case].gradients
    assert_close(found.gradients, wanted, relative=5e-6)
    assert max((found.gradients[n] - g).abs().max() for n, g in wanted.items()) < 2e-6
    assert_updated_alike(found.weights, expected[case].weights)


@pytest.mark.parametrize(("saved_at", "layout"), EVERY_RESUME)
def test_a_checkpoint_is_loaded_bit_for_bit_at_any_layout(results, saved_at, layout):
    found = load(results / f"checkpoints-{saved_at}.pt")
    saved = found["saved"][0]
    for part, tensors in saved.items():
        assert_close(found[layout][0][part], tensors)
    if "exp_avg_sq" in saved:
        experts = [name for name in saved["exp_avg_sq"] if ".experts." in name]
        assert max(saved["exp_avg_sq"][name].max() for name in experts) > 0


@pytest.mark.parametrize(("saved_at", "layout"), EVERY_RESUME)
def test_going_on_from_a_checkpoint_is_the_same_within_rounding(results, saved_at, layout):
    """The weights a step later tell whether shared out moments have been found again."""
    found = load(results / f"checkpoints-{saved_at}.pt")
    _, metrics, after = found["saved"]
    _, resumed_metrics, resumed = found[layout]
    for ours, theirs in zip(resumed_metrics, metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=5e-6)
    for part in resumed:
        if part != "exp_avg_sq":
            assert_close(resumed[part], after[part], relative=0 if layout == saved_at else 1e-4)


@pytest.mark.parametrize("name", ["qwen3_moe", "scorer"])
def test_weights_written_at_tp2_ep2_come_back_at_pp2_ep2(results, name):
    tensors = load_file(results / f"{name}-back/model.safetensors")
    assert_close(tensors, load_file(results / f"{name}/model.safetensors"))
