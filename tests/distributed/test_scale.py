"""The formulas of docs/scale.md, against what four ranks really send each other."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks.traffic import (
    FILES_OF_MODEL,
    FILES_OF_RANK,
    FILES_OF_SAVE,
    Pass,
    Traffic,
    listed_bytes,
    load_traffic,
    pass_traffic,
    rollout_bytes,
    rollout_traffic,
    save_traffic,
    swap_traffic,
)
from megatron_gad.planning.layout import Layout
from megatron_gad.planning.shapes import ModelShape, read_shape
from megatron_gad.planning.work import Lengths
from tests.distributed import scale_worker
from tests.distributed.counting import Key
from tests.distributed.scale_worker import CHUNK_SIZE, LAYOUTS, PAIRS, RECOMPUTE, ROWS, VOCAB_SIZE
from tests.ranks import run_on_ranks
from tests.tiny import make_hf_folder

WORLD = 4
# Pickles of a few numbers or names around what is counted.
FRAME_BYTES = 1_500
FLOAT32 = 4


class Expected(NamedTuple):
    """What one kind of call of one group has to come to; of objects a little more may be sent."""

    calls: int
    least: float
    most: float


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both models, after all was counted."""
    folder = tmp_path_factory.mktemp("scale")
    # Every tensor has a multiple of 128 entries on a rank, so that no buffer pads it.
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
    for name in ("tied", "untied"):
        make_hf_folder(folder / name, "qwen2", VOCAB_SIZE, tie=name == "tied", **sizes)
    run_on_ranks(scale_worker.main, WORLD, folder)
    return folder


@pytest.fixture(scope="module")
def counted(folder: Path) -> dict[str, Any]:
    """What the worker counted."""
    return torch.load(folder / "counted.pt", weights_only=False)


def layout_of(name: str) -> Layout:
    """The planner's words for a layout of the worker."""
    given = LAYOUTS[name]
    tensor, pipeline = given.tensor_model_parallel_size, given.pipeline_model_parallel_size
    return Layout(
        tensor=tensor,
        pipeline=pipeline,
        data=WORLD // (tensor * pipeline),
        sequence_parallel=given.sequence_parallel,
        distributed_optimizer=given.use_distributed_optimizer,
        recompute=RECOMPUTE if "again" in name else None,
    )


def pass_of(shape: ModelShape, layout: Layout, part: str) -> Pass:
    """What the worker let a model do."""
    is_scorer = part == "discriminator"
    rows = [sum(row) for row in (PAIRS if is_scorer else ROWS)]
    predicted = sum(response for _, response in ROWS) // layout.data
    count = 4 // layout.data
    return Pass(
        shape=shape,
        layout=layout,
        is_scorer=is_scorer,
        value_bytes=FLOAT32,
        microbatches=count,
        tokens=sum(rows) // layout.data,
        predicted=predicted,
        chunks=-(-predicted // count // CHUNK_SIZE),
        row_bytes=FLOAT32 * (len(rows) if is_scorer else sum(rows)) // layout.data,
        trains=part != "reference",
        num_metrics={"student": 2, "reference": 0, "discriminator": 5}[part],
    )


def add_up(traffic: Iterable[Traffic], ranks: dict[str, tuple[int, ...]]) -> dict[Key, Expected]:
    """Return what all calls of a kind and a group come to."""
    total: dict[Key, Expected] = defaultdict(lambda: Expected(0, 0, 0))
    for each in traffic:
        key = Key(each.kind, ranks[each.group])
        calls, least, most = total[key]
        frame = FRAME_BYTES if each.is_object else 0
        most += each.num_bytes + frame
        total[key] = Expected(calls + each.calls, least + each.num_bytes, most)
    return {key: each for key, each in total.items() if len(key.ranks) > 1}


def check(found: tuple[dict[Key, int], dict[Key, int]], expected: dict[Key, Expected]) -> None:
    """Compare calls and bytes of every kind and group."""
    calls, num_bytes = found
    assert calls == {key: each.calls for key, each in expected.items()}
    for key, each in expected.items():
        assert each.least <= num_bytes[key] <= each.most, (key, each, num_bytes[key])


@pytest.mark.parametrize("part", ["student", "reference", "discriminator"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_pass_sends_what_its_formula_says(
    folder: Path, counted: dict[str, Any], name: str, part: str
) -> None:
    """Every call and byte of the passes of a step, on every rank."""
    shape, layout = read_shape(folder / name.split()[0]), layout_of(name)
    for rank in counted[name]:
        traffic = pass_traffic(pass_of(shape, layout, part), rank["stage"])
        check(rank["found"][part], add_up(traffic, rank["ranks"]))


@pytest.mark.parametrize("name", LAYOUTS)
def test_swap_sends_what_its_formula_says(folder: Path, counted: dict[str, Any], name: str) -> None:
    """Every tensor of the student, put together on all ranks of a model."""
    shape, layout = read_shape(folder / name.split()[0]), layout_of(name)
    for rank in counted[name]:
        check(rank["found"]["swap"], add_up(swap_traffic(shape, layout, FLOAT32), rank["ranks"]))


@pytest.mark.parametrize("name", LAYOUTS)
def test_rollouts_are_as_long_as_their_formula_says(counted: dict[str, Any], name: str) -> None:
    """Groups to the ranks of a model, within a tenth, and to other data ranks at most all of them.

    A group of which every data rank keeps one is not sent, so this is a bound.
    """
    layout = layout_of(name)
    size = rollout_bytes(2, 4, Lengths(30, 80, 30, 80))
    for rank in counted[name]:
        calls, num_bytes = rank["found"]["rollouts"]
        expected = add_up(rollout_traffic(layout, size), rank["ranks"])
        assert calls == {key: each.calls for key, each in expected.items()}
        for key, each in expected.items():
            assert num_bytes[key] <= each.most, (key, each, num_bytes[key])
        if layout.model_group > 1:
            sent = num_bytes[Key("broadcast", rank["ranks"]["model"])]
            assert sent == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_save_sends_what_its_formula_says(folder: Path, counted: dict[str, Any], name: str) -> None:
    """As many calls, and at most as many bytes of what ranks tell of their tensors."""
    shape, layout = read_shape(folder / name.split()[0]), layout_of(name)
    for rank in counted[name]:
        calls, num_bytes = rank["found"]["save"]
        traffic = save_traffic([(shape, False), (shape, True)], layout, FLOAT32, rank["stage"])
        expected = add_up(traffic, rank["ranks"])
        assert calls == {key: each.calls for key, each in expected.items()}
        for key, each in expected.items():
            assert each.most / 4 <= num_bytes[key] <= each.most, (key, each, num_bytes[key])


@pytest.mark.parametrize("name", LAYOUTS)
def test_load_sends_what_its_formula_says(folder: Path, counted: dict[str, Any], name: str) -> None:
    """As many calls, every byte of the tensors, and at most as many bytes of what is told."""
    shape, layout = read_shape(folder / name.split()[0]), layout_of(name)
    for number, rank in enumerate(counted[name]):
        calls, num_bytes = rank["found"]["load"]
        traffic = load_traffic([(shape, False), (shape, True)], layout, FLOAT32, rank["stage"])
        expected = add_up(traffic, rank["ranks"])
        assert calls == {key: each.calls for key, each in expected.items()}
        for key, each in expected.items():
            if key.kind == "scatter" and number > 0:
                continue  # the first rank's
            assert each.least / 4 <= num_bytes[key] <= each.most, (key, each, num_bytes[key])
        if layout.data > 1 and layout.data < WORLD:
            tensors = Key("broadcast", rank["ranks"]["data"])
            assert num_bytes[tensors] == expected[tensors].least


@pytest.mark.parametrize("name", LAYOUTS)
def test_list_of_tensors_is_as_long_as_its_formula_says(folder: Path, name: str) -> None:
    shape, layout = read_shape(folder / name.split()[0]), layout_of(name)
    most = listed_bytes(shape, layout, FLOAT32)
    for file in (folder / name).rglob(".metadata"):
        assert most / 4 <= file.stat().st_size <= most + FRAME_BYTES, file


@pytest.mark.parametrize("name", LAYOUTS)
def test_save_writes_as_many_files_as_its_formula_says(folder: Path, name: str) -> None:
    """Two of each rank and model, and a few others on any number of ranks."""
    files = [file for file in (folder / name).rglob("*") if file.is_file()]
    of_ranks = [file for file in files if file.suffix == ".distcp"]
    assert len(of_ranks) == FILES_OF_RANK * WORLD * 2
    assert len(files) - len(of_ranks) == FILES_OF_MODEL * 2 + FILES_OF_SAVE
