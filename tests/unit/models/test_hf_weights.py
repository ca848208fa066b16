"""Loading, exporting and writing weights on one rank; tests/distributed has the other layouts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
)

from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.models import hf_folder
from megatron_gad.models.build import build_language_model, build_scorer
from megatron_gad.models.families import load_hf_config
from megatron_gad.models.hf_folder import save_hf_folder
from megatron_gad.models.hf_weights import export_hf_weights, load_hf_weights
from tests.tiny import CLASSES, make_hf_folder


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Read the safetensors file that make_hf_folder wrote."""
    return load_file(folder / "model.safetensors")


def exported(folder: Path, source: Any) -> dict[str, Tensor]:
    """Load a language model of the folder's shape from a source and export it."""
    config = load_hf_config(folder)
    chunks = build_language_model(config, ParallelConfig(), ComputeConfig())
    load_hf_weights(chunks, config, source)
    return dict(export_hf_weights(chunks, config))


def assert_same(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compare names and bits."""
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("tie", [False, True])
def test_weights_come_back_bit_identical(tmp_path: Path, family: str, tie: bool) -> None:
    folder = make_hf_folder(tmp_path, family, tie=tie)
    expected = tensors_of(folder)
    assert ("lm_head.weight" in expected) != tie
    assert_same(exported(folder, folder), expected)
    assert_same(exported(folder, iter(expected.items())), expected)


def test_a_folder_in_several_files_is_read_through_its_index(tmp_path: Path) -> None:
    folder = make_hf_folder(tmp_path / "one")
    sharded = AutoModelForCausalLM.from_pretrained(folder)
    sharded.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert_same(exported(folder, tmp_path / "many"), tensors_of(folder))


def test_exported_tensors_do_not_change_with_the_model(tmp_path: Path) -> None:
    folder = make_hf_folder(tmp_path)
    config = load_hf_config(folder)
    chunks = build_language_model(config, ParallelConfig(), ComputeConfig())
    load_hf_weights(chunks, config, folder)
    kept = dict(export_hf_weights(chunks, config))
    with torch.no_grad():
        for parameter in chunks[0].parameters():
            parameter.zero_()
    assert_same(kept, tensors_of(folder))


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    folder = make_hf_folder(tmp_path)
    tensors = tensors_of(folder)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match=r"lacks 1 tensors.*layers\.1\.mlp\.up_proj\.weight"):
        exported(folder, tensors.items())


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    folder = make_hf_folder(tmp_path)
    tensors = tensors_of(folder) | {"model.layers.0.self_attn.k_proj.weight": torch.zeros(32, 32)}
    with pytest.raises(ValueError, match=r"k_proj\.weight has shape \[32, 32\].*\[16, 32\]"):
        exported(folder, tensors.items())


def test_a_tensor_the_model_has_not_is_named(tmp_path: Path) -> None:
    folder = make_hf_folder(tmp_path)
    tensors = tensors_of(folder) | {"model.layers.0.self_attn.o_proj.bias": torch.zeros(32)}
    with pytest.raises(ValueError, match=r"'model\.layers\.0\.self_attn\.o_proj\.bias'"):
        exported(folder, tensors.items())


# A family of mixtures, its key of the number of experts, and the names and shapes of its tensors:
# hidden size 32, experts of width 20, or of a whole layer's 48.
MIXTURES = [
    ("qwen3_moe", "num_experts", "mlp", ("gate_proj", "up_proj", "down_proj"), 20),
    ("mixtral", "num_local_experts", "block_sparse_moe", ("w1", "w3", "w2"), 48),
]


def refusal(folder: Path, tensors: dict[str, Tensor]) -> str:
    """Return what is said to tensors that a folder's model cannot take."""
    with pytest.raises(ValueError) as error:
        exported(folder, tensors.items())
    return str(error.value)


@pytest.mark.parametrize(("family", "key", "block", "names", "width"), MIXTURES)
def test_another_number_of_experts_is_told_by_the_first_tensor_that_does_not_fit(
    tmp_path: Path, family: str, key: str, block: str, names: tuple[str, ...], width: int
) -> None:
    tensors = tensors_of(make_hf_folder(tmp_path / "four", family))
    routers = {name: x for name, x in tensors.items() if name.endswith("gate.weight")}
    counts: list[dict[str, Any]] = [{key: 2}, {key: 6}]
    two, six = (make_hf_folder(tmp_path / str(n[key]), family, **n) for n in counts)
    assert (
        f"model.layers.0.{block}.gate.weight has shape [4, 32] where the model's config.json means "
        "[2, 32]"
    ) in refusal(two, routers | tensors)
    down = f"model.layers.0.{block}.experts.3.{names[2]}.weight"
    fewer = {name: x[:2] for name, x in routers.items()} | {down: tensors[down]}
    assert f"has a tensor '{down}', of shape [32, {width}], that" in refusal(two, fewer)
    assert "has shape [4, 32] where the model's config.json means [6, 32]" in refusal(six, tensors)


@pytest.mark.parametrize(("family", "key", "block", "names", "width"), MIXTURES)
def test_experts_that_are_missing_or_of_another_width_are_named(
    tmp_path: Path, family: str, key: str, block: str, names: tuple[str, ...], width: int
) -> None:
    folder = make_hf_folder(tmp_path, family)
    tensors = tensors_of(folder)
    gate, up, down = (f"model.layers.1.{block}.experts.3.{name}.weight" for name in names)
    without = {name: x for name, x in tensors.items() if name not in (up, down)}
    missing = refusal(folder, without)
    assert "lacks 2 tensors" in missing and f": {', '.join(sorted((up, down)))};" in missing
    wide = refusal(folder, tensors | {gate: torch.zeros(width + 4, 32)})
    assert f"{gate} has shape [{width + 4}, 32] where" in wide and f"[{width}, 32]" in wide
    turned = refusal(folder, tensors | {down: torch.zeros(width, 32)})
    assert f"{down} has shape [{width}, 32] where" in turned and f"[32, {width}]" in turned


def test_a_folder_with_more_layers_than_its_config_says_is_refused(tmp_path: Path) -> None:
    folder = make_hf_folder(tmp_path, num_hidden_layers=3)
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": 2, "layer_types": None}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model\.layers\.2"):
        exported(folder, folder)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    folder = make_hf_folder(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors.*save_pretrained"):
        exported(folder, folder)


def test_derived_frequencies_in_older_files_are_skipped(tmp_path: Path) -> None:
    folder = make_hf_folder(tmp_path)
    expected = tensors_of(folder)
    older = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(expected | older, folder / "model.safetensors")
    assert_same(exported(folder, folder), expected)


def test_a_scorer_keeps_its_head_unless_the_source_has_one(tmp_path: Path) -> None:
    folder = make_hf_folder(tmp_path)
    config = load_hf_config(folder)
    chunks = build_scorer(config, ParallelConfig(), ComputeConfig(), head_std=0.3, seed=3)
    load_hf_weights(chunks, config, folder)
    drawn = torch.randn(1, 32, generator=torch.Generator().manual_seed(3)) * 0.3
    expected = tensors_of(folder) | {"score.weight": drawn}
    del expected["lm_head.weight"]
    assert_same(dict(export_hf_weights(chunks, config)), expected)

    given = expected | {"score.weight": torch.full((1, 32), 0.5)}
    load_hf_weights(chunks, config, given.items())
    assert_same(dict(export_hf_weights(chunks, config)), given)


def test_a_written_folder_is_the_model_for_transformers(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(hf_folder, "SHARD_BYTES", 20_000)
    source = make_hf_folder(tmp_path / "in", "llama")
    (source / "tokenizer.json").write_text("{}")
    (source / "generation_config.json").write_text('{"temperature": 0.5}')
    (source / "training_args.bin").write_text("stays behind")
    template = "additional_chat_templates/tool_use.jinja"
    (source / template).parent.mkdir()
    (source / template).write_text("{{ tools }}")
    config = load_hf_config(source)
    out = tmp_path / "made" / "out"
    for _ in range(2):  # the second time in place of the first
        save_hf_folder(exported(source, source).items(), config, source, out)
    assert len(list(out.glob("*.safetensors"))) > 2
    assert (out / "tokenizer.json").exists()
    assert json.loads((out / "generation_config.json").read_text())["temperature"] == 0.5
    assert not (out / "training_args.bin").exists()
    assert (out / template).read_text() == "{{ tools }}"
    assert [path.name for path in out.parent.iterdir()] == ["out"]

    tokens = torch.arange(12).view(2, 6)
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (source, out))
    assert torch.equal(before(tokens).logits, after(tokens).logits)


@pytest.mark.parametrize(
    ("before", "stop_ids", "after"),
    [
        ({"eos_token_id": 0, "top_k": 7}, (2, 0), {"eos_token_id": [2, 0], "top_k": 7}),
        (None, (2,), {"eos_token_id": 2}),
        ({"eos_token_id": [5, 6]}, (), {"eos_token_id": [5, 6]}),
    ],
)
def test_a_written_folder_stops_at_the_tokens_that_it_was_taught(
    tmp_path: Path, before: dict[str, Any] | None, stop_ids: tuple[int, ...], after: dict[str, Any]
) -> None:
    source = make_hf_folder(tmp_path / "in")
    file = source / "generation_config.json"
    file.unlink()
    if before is not None:
        file.write_text(json.dumps(before))
    config, out = load_hf_config(source), tmp_path / "out"
    save_hf_folder(tensors_of(source).items(), config, source, out, stop_ids)
    read = GenerationConfig.from_pretrained(out).to_dict()
    assert {key: read[key] for key in after} == after
    assert json.loads((out / "generation_config.json").read_text()) == after


def test_a_folder_that_holds_no_model_is_not_replaced(tmp_path: Path) -> None:
    source = make_hf_folder(tmp_path / "in")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "important.txt").write_text("keep me")
    with pytest.raises(ValueError, match=r"notes exists and holds no config\.json"):
        save_hf_folder([], load_hf_config(source), source, tmp_path / "notes")
    assert (tmp_path / "notes" / "important.txt").read_text() == "keep me"


def test_a_written_scorer_is_a_sequence_classifier_for_transformers(tmp_path: Path) -> None:
    folder = make_hf_folder(tmp_path / "in", "qwen3", tie=True)
    config = load_hf_config(folder)
    chunks = build_scorer(config, ParallelConfig(), ComputeConfig(), head_std=0.3)
    load_hf_weights(chunks, config, folder)
    save_hf_folder(export_hf_weights(chunks, config), config, folder, tmp_path / "out")
    tokens = torch.arange(1, 13).view(2, 6)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    scores = chunks[0](tokens, torch.arange(6).expand(2, 6), None)
    assert classifier.config.num_labels == 1
    torch.testing.assert_close(classifier(tokens).logits, scores[:, -1:], atol=1e-5, rtol=1e-5)


def test_the_written_config_keeps_the_keys_of_the_original(tmp_path: Path) -> None:
    """Inference engines with an older transformers look for rope_theta at the top level."""
    folder = make_hf_folder(tmp_path / "in")
    original = json.loads((folder / "config.json").read_text())
    del original["rope_parameters"], original["dtype"]
    original |= {"rope_theta": 1e6, "torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(original))
    save_hf_folder(tensors_of(folder).items(), load_hf_config(folder), folder, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == original | {"torch_dtype": "float32"}
