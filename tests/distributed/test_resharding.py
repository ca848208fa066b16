"""Checkpoints of both models move between layouts and numbers of ranks bit for bit, and back."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing
from torch import Tensor

from megatron_gad.config.layout import ParallelConfig
from megatron_gad.manifest import changed_files, names_in, read_manifest
from megatron_gad.planning.layout import Layout
from megatron_gad.planning.saving import saved_bytes
from megatron_gad.planning.shapes import read_shape
from megatron_gad.training.checkpoint_files import iteration_folder
from megatron_gad.training.parallel import initialize, shut_down
from tests.distributed import resharding_worker
from tests.distributed.resharding_worker import MODELS
from tests.distributed.training_cases import VOCAB_SIZE
from tests.memory import WRITER
from tests.ranks import run_on_ranks
from tests.tiny import make_hf_folder

# Four query groups of two heads, so that four tensor ranks can have one each.
SHAPE = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "tie": True}
MOVED = ("tp4", "pp4", "dp4")
# (where it begins, on how many ranks, whether the optimizer's states are shared out)
BEGINNINGS = {"eight": ("tp2-pp2-vpp2-dp2", 8, True), "four": ("tp2-pp2", 4, False)}
EVERYWHERE = [(name, moved) for name in BEGINNINGS for moved in (*MOVED, "one")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all checkpoints, and what going on from them gave."""
    folder = tmp_path_factory.mktemp("resharding")
    make_hf_folder(folder / "qwen2-tied", "qwen2", VOCAB_SIZE, **SHAPE)
    for name, (layout, num_ranks, distributed) in BEGINNINGS.items():
        beginning = (folder, layout, distributed)
        run_on_ranks(resharding_worker.begin, num_ranks, *beginning, name)
        run_on_ranks(resharding_worker.move, 4, folder, distributed, name, MOVED)
        run_on_ranks(resharding_worker.move, 1, folder, distributed, name, ("one",))
        run_on_ranks(resharding_worker.come_back, num_ranks, *beginning, name, (*MOVED, "one"))
    return folder


@pytest.fixture(scope="module")
def tensors(results: Path) -> dict[str, dict[str, Tensor]]:
    """Run directory -> whole tensors of both models, as one process reads them."""
    initialize(ParallelConfig(), seed=0)
    found = {}
    names = [(name, "background") for name in BEGINNINGS] + EVERYWHERE
    for name in (*BEGINNINGS, *("-".join(each) for each in names)):
        folder = iteration_folder(results / name, 1)
        found[name] = {
            f"{model}/{key}": tensor
            for model in MODELS
            for key, tensor in dist_checkpointing.load_plain_tensors(str(folder / model)).items()
            if isinstance(tensor, Tensor)
        }
    shut_down()
    return found


def without_padding(tensor: Tensor) -> Tensor:
    """Without the rows of a vocabulary that only some layouts have."""
    return tensor[:VOCAB_SIZE] if VOCAB_SIZE < len(tensor) < VOCAB_SIZE + 8 else tensor


@pytest.mark.parametrize(("name", "layout"), EVERYWHERE)
def test_a_checkpoint_saved_at_another_layout_has_the_same_bits(tensors, name, layout) -> None:
    expected, moved = tensors[name], tensors[f"{name}-{layout}"]
    assert moved.keys() == expected.keys()
    moments = [key for key in expected if re.search(r"/optimizer\.state\.exp_avg(_sq)?\.", key)]
    assert len(moments) == 2 * sum("/optimizer" not in key for key in expected)
    for key, tensor in expected.items():
        assert torch.equal(without_padding(moved[key]), without_padding(tensor)), key
        assert key not in moments or tensor.any(), key


@pytest.mark.parametrize("name", BEGINNINGS)
def test_what_several_ranks_write_in_the_background_is_from_when_they_began(
    results, tensors, name
) -> None:
    expected, found = tensors[name], tensors[f"{name}-background"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    folder = iteration_folder(results / f"{name}-background", 1)
    written = read_manifest(folder)
    assert sorted(written) == names_in(folder)
    assert changed_files(folder, written, written) == []


@pytest.mark.parametrize(("name", "layout"), EVERYWHERE)
def test_coming_back_goes_on_bit_for_bit(results, name, layout) -> None:
    metrics, weights = torch.load(results / f"{name}.pt", weights_only=False)
    again: tuple[Any, Any] = torch.load(results / f"{name}-{layout}.pt", weights_only=False)
    assert again[0] == metrics
    for model, named in weights.items():
        for key, tensor in named.items():
            assert torch.equal(again[1][model][key], tensor), (model, key)


@pytest.mark.parametrize("distributed", [False, True])
def test_four_data_ranks_write_and_read_a_quarter_each(tmp_path: Path, distributed) -> None:
    """Of all bytes together, and but for the lists of tensors that every rank reads."""
    wide = {"hidden_size": 128, "intermediate_size": 512}
    make_hf_folder(tmp_path / "larger", "qwen2", 2048, **{**SHAPE, **wide})
    run_on_ranks(resharding_worker.read_and_write, 4, tmp_path)
    student = iteration_folder(tmp_path / f"bytes-{distributed}", 1) / "student"
    written = [
        sum(file.stat().st_size for file in student.glob(f"__{rank}_*.distcp")) for rank in range(4)
    ]
    lists = sum((student / name).stat().st_size for name in (".metadata", "common.pt"))
    assert sum(written) > 20 * lists
    assert max(written) < 0.3 * sum(written)
    read, made = torch.load(tmp_path / f"bytes-{distributed}.pt", weights_only=False)
    assert sum(read) < 1.2 * sum(written) + 4 * 4 * lists
    assert max(read) < 0.35 * sum(written) + 4 * lists
    # What Megatron's writer makes is on the host. Nothing else has the size of what is saved.
    layout = Layout(data=4, distributed_optimizer=distributed)
    planned = saved_bytes(read_shape(tmp_path / "larger"), layout, bf16=False, is_scorer=False)
    for each in made:
        assert each.pop(WRITER) <= planned
        assert each.total() < 0.01 * planned, each
