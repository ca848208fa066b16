"""The weights of a model folder against its config.json, from the headers of its files."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from megatron_gad.checks.found import read_folder
from megatron_gad.checks.models import folder_problems
from megatron_gad.checks.weights import describe_types, type_warnings, value_problems
from megatron_gad.models.families import load_hf_config
from megatron_gad.models.tensor_names import LM_HEAD, body_shapes, head_shapes
from tests.tiny import CLASSES, make_hf_folder

Tensors = dict[str, torch.Tensor]
UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 988097824\n"


def problems_of(folder: Path, is_scorer: bool = False) -> list[str]:
    """Return what is said about a folder, without its name."""
    found = list(folder_problems(read_folder("student.path", str(folder)), is_scorer))
    named = f"student.path = '{folder}'"
    assert all(problem.startswith(named) for problem in found), found
    return [problem.removeprefix(named).removeprefix(":").strip() for problem in found]


def change(folder: Path, edit: Callable[[Tensors], Any]) -> None:
    """Change the tensors of a folder's one file."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def set_config(folder: Path, **values: object) -> None:
    """Change keys of a folder's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def in_shards(folder: Path) -> list[Path]:
    """Write a folder's weights as several files; returns them."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 2
    return files


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("family", CLASSES)
def test_names_and_shapes_are_those_that_transformers_saves(
    tmp_path: Path, family: str, tie: bool
) -> None:
    folder = make_hf_folder(tmp_path, family, tie=tie)
    config = load_hf_config(folder)
    saved = {k: tuple(x.shape) for k, x in load_file(folder / "model.safetensors").items()}
    head = {} if tie else {LM_HEAD: head_shapes(config)[LM_HEAD]}
    assert body_shapes(config) | head == saved
    assert problems_of(folder) == []


def test_a_folder_in_several_files_has_no_problem(tmp_path: Path) -> None:
    in_shards(make_hf_folder(tmp_path))
    assert problems_of(tmp_path) == []


def test_missing_cut_and_pointed_to_shards_are_all_named(tmp_path: Path) -> None:
    first, second, third, *_ = in_shards(make_hf_folder(tmp_path))
    first.unlink()
    whole = second.stat().st_size
    second.write_bytes(second.read_bytes()[:-100])
    third.write_text(POINTER)
    missing, cut, pointer = problems_of(tmp_path)
    assert missing == f"lacks {first.name}, which model.safetensors.index.json names; download it"
    assert cut.startswith(
        f"holds {second.name} of {whole - 100:,} bytes, and its header speaks of {whole:,}; "
        "download it again"
    )
    assert pointer == (
        f"holds a git-lfs pointer of {len(POINTER)} bytes in place of {third.name}; run git lfs "
        "pull there, or download the folder with hf download"
    )


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "generation_config.json"])
def test_pointers_in_place_of_small_files_are_named(tmp_path: Path, name: str) -> None:
    make_hf_folder(tmp_path)
    (tmp_path / name).write_text(POINTER)
    (problem,) = problems_of(tmp_path)
    assert f"in place of {name}; run git lfs pull" in problem


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "of 0 bytes that is no safetensors file"),
        (b"<html>not found</html>", "of 22 bytes that is no safetensors file"),
        (struct.pack("<Q", 50) + b"{}", "of 10 bytes that ends inside its header"),
        (struct.pack("<Q", 4) + b"[{}]", "of 12 bytes without a header of safetensors"),
    ],
)
def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (make_hf_folder(tmp_path) / "model.safetensors").write_bytes(content)
    (problem,) = problems_of(tmp_path)
    assert problem.startswith(f"holds model.safetensors {said}") and "again" in problem


def test_an_index_of_another_model_is_told_by_its_tensors(tmp_path: Path) -> None:
    in_shards(make_hf_folder(tmp_path))
    file = tmp_path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"][NORM + "s"] = index["weight_map"].pop(NORM)
    file.write_text(json.dumps(index))
    (problem,) = problems_of(tmp_path)
    assert "index.json with 1 tensors that are not in the files it names: model.norm.weights" in (
        problem
    )
    file.write_text("{}")
    (problem,) = problems_of(tmp_path)
    assert problem.startswith("holds a broken model.safetensors.index.json (KeyError")
    file.write_text(json.dumps({"weight_map": {NORM: "model-1.safetensors"}}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    (problem,) = problems_of(tmp_path)
    assert "names other files, so it is not clear which are the model's; remove" in problem


def test_weights_in_other_formats_are_told_with_the_way_to_convert_them(tmp_path: Path) -> None:
    make_hf_folder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    (problem,) = problems_of(tmp_path)
    assert problem.startswith(
        "holds model-00001-of-00002.safetensors but neither model.safetensors nor "
    )
    (tmp_path / "model-00001-of-00002.safetensors").rename(tmp_path / "pytorch_model.bin")
    (problem,) = problems_of(tmp_path)
    assert problem.startswith("holds pytorch_model.bin and no *.safetensors; convert it with ")
    assert "save_pretrained('NEW_FOLDER')" in problem
    (tmp_path / "adapter_config.json").write_text("{}")
    (problem,) = problems_of(tmp_path)
    assert problem.startswith("holds a LoRA adapter") and "merge_and_unload()" in problem


def test_values_that_are_not_finite_are_found_by_reading_all(tmp_path: Path) -> None:
    files = in_shards(make_hf_folder(tmp_path))
    assert list(value_problems(read_folder("student.path", str(tmp_path)))) == []
    broken = {}
    for file, value in zip(files, (float("nan"), float("-inf")), strict=False):
        tensors = load_file(file)
        name = min(tensors)
        tensors[name].view(-1)[-1] = value
        save_file(tensors, file, metadata={"format": "pt"})
        broken[name] = file.name
    assert problems_of(tmp_path) == []  # headers say nothing of values
    (problem,) = value_problems(read_folder("student.path", str(tmp_path)))
    first = next(iter(broken))
    assert problem.startswith(
        f"student.path = '{tmp_path}': 2 tensors hold values that are not finite: "
        f"{', '.join(broken)}; of {first} it is 1, in {broken[first]}: "
    )


def test_every_kind_of_misfit_is_told_at_once(tmp_path: Path) -> None:
    def edit(tensors: Tensors) -> None:
        del tensors[UP]
        tensors[NORM] = tensors[NORM][:16].contiguous()
        tensors["model.layers.0.self_attn.o_proj.bias"] = torch.zeros(32)

    change(make_hf_folder(tmp_path), edit)
    missing, extra, shape = problems_of(tmp_path)
    assert missing.startswith(f"lacks 1 tensors of the 'qwen2' model: {UP};")
    assert extra.startswith(
        "has 1 tensors that a 'qwen2' model with its config.json has not: "
        "model.layers.0.self_attn.o_proj.bias (the first in model.safetensors)"
    )
    assert shape.startswith(
        f"{NORM} has shape [16] where the model's config.json means [32] (in model.safetensors);"
    )


def test_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    make_hf_folder(tmp_path)
    set_config(tmp_path, num_hidden_layers=3, layer_types=None)
    (problem,) = problems_of(tmp_path)
    assert "lacks 12 tensors" in problem and "k_proj.weight" in problem and "and 8 more" in problem


def test_a_model_saved_inside_of_another_is_told_by_its_names(tmp_path: Path) -> None:
    make_hf_folder(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}  # torch.compile
    save_file(wrapped, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (problem,) = problems_of(tmp_path)
    assert f"lacks {len(tensors)} tensors of the " in problem
    assert "; the names begin with '_orig_mod.', as a model is saved inside of another" in problem


@pytest.mark.parametrize("inner", ["checkpoint-500", "snapshots/" + "a" * 40])
def test_the_model_in_a_folder_around_it_is_named(tmp_path: Path, inner: str) -> None:
    """As the trainer of transformers writes it, and the hub's cache."""
    make_hf_folder(tmp_path / inner)
    first, _ = problems_of(tmp_path)
    assert first == f"holds no config.json; name a model in it: {tmp_path / inner}"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_quantised_weights_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    def edit(tensors: Tensors) -> None:
        tensors[UP] = tensors[UP].to(dtype)

    change(make_hf_folder(tmp_path), edit)
    (problem,) = problems_of(tmp_path)
    spelled = {torch.float8_e4m3fn: "F8_E4M3", torch.int8: "I8"}[dtype]
    assert problem.startswith(f"{UP} in model.safetensors is of type {spelled}, 1 tensors are not")
    assert "use the model's bfloat16 release" in problem


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_float_can_be_loaded(tmp_path: Path, dtype: torch.dtype) -> None:
    def edit(tensors: Tensors) -> None:
        tensors |= {name: tensor.to(dtype) for name, tensor in tensors.items()}

    change(make_hf_folder(tmp_path), edit)
    assert problems_of(tmp_path) == []


def test_a_body_without_its_output_layer_is_a_discriminators_only(tmp_path: Path) -> None:
    change(make_hf_folder(tmp_path / "headless"), lambda tensors: tensors.pop(LM_HEAD))
    (problem,) = problems_of(tmp_path / "headless")
    assert "lm_head.weight; save the language model" in problem
    assert problems_of(tmp_path / "headless", is_scorer=True) == []

    AutoModel.from_pretrained(tmp_path / "headless").save_pretrained(tmp_path / "body")
    (problem,) = problems_of(tmp_path / "body", is_scorer=True)
    assert "the names lack 'model.', as a body without its head is saved" in problem


def test_a_score_head_has_one_label(tmp_path: Path) -> None:
    def edit(num_labels: int) -> Callable[[Tensors], None]:
        return lambda tensors: tensors.update({"score.weight": torch.zeros(num_labels, 32)})

    change(make_hf_folder(tmp_path), edit(1))
    assert problems_of(tmp_path, is_scorer=True) == []
    change(tmp_path, edit(2))
    (problem,) = problems_of(tmp_path, is_scorer=True)
    assert problem.startswith("score.weight has shape [2, 32] where the model's config.json means")


@pytest.mark.parametrize("row", [0, 96])
def test_a_tied_model_may_hold_no_other_output_layer(tmp_path: Path, row: int) -> None:
    make_hf_folder(tmp_path, tie=True)
    change(tmp_path, lambda t: t.update({LM_HEAD: t[EMBEDDING].clone()}))
    assert problems_of(tmp_path) == []

    def edit(tensors: Tensors) -> None:
        tensors[LM_HEAD][row] += 1.0

    change(tmp_path, edit)
    (problem,) = problems_of(tmp_path)
    assert problem.startswith("tie_word_embeddings = true in config.json, but lm_head.weight in ")
    assert problems_of(tmp_path, is_scorer=True) == []


@pytest.mark.parametrize("is_bf16", [True, False])
def test_half_precision_is_told_with_what_it_may_have_lost(tmp_path: Path, is_bf16: bool) -> None:
    read = read_folder("student.path", str(make_hf_folder(tmp_path)))
    assert describe_types(read) == "F32"
    assert [*type_warnings(read, is_bf16)] == []
    change(tmp_path, lambda tensors: tensors.update({k: tensors[k].half() for k in (UP, NORM)}))
    total = len(load_file(tmp_path / "model.safetensors"))
    read = read_folder("student.path", str(tmp_path))
    assert describe_types(read) == "F32, F16"
    assert problems_of(tmp_path) == []
    (warning,) = type_warnings(read, is_bf16)
    assert f": 2 of {total} tensors are float16, and are read as " in warning
    assert ("bfloat16, with fewer digits" in warning) == is_bf16
    largest = torch.finfo(torch.float16).max
    smallest = torch.finfo(torch.float16).tiny * torch.finfo(torch.float16).eps  # subnormal
    assert (f"{largest:,.0f}" in warning, f"{smallest:.0e}") == (True, "6e-08")
