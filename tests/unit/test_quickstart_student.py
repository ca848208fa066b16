"""The quickstart's tokenizer and untrained student, read back as any user of the folder would."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.quickstart.robot_turns import all_prompts, check, teacher_answer
from examples.quickstart.student import StudentShape, make_student
from examples.quickstart.tokenizer import SPECIAL_TOKENS
from examples.tiny.prepare import prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("student"), seed=0)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(str(folder))


def test_every_prompt_and_answer_survives_the_round_trip(tokenizer: Any) -> None:
    for prompt in all_prompts():
        for text in (prompt, teacher_answer(prompt, seed=0)):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_vocabulary_is_the_seventeen_words_and_the_special_tokens(tokenizer: Any) -> None:
    assert len(tokenizer) == 17 + len(SPECIAL_TOKENS)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)


def test_a_word_is_one_token_so_responses_have_14_to_18(tokenizer: Any) -> None:
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode("facing south, because west left"))
    assert pieces == ["facing", " south", ",", " because", " west", " left"]
    prompts = {len(tokenizer.encode(prompt)) for prompt in all_prompts()}
    responses = {len(tokenizer.encode(teacher_answer(p, seed=0))) for p in all_prompts()}
    assert prompts == {8, 9}
    assert responses == {14, 16, 18}


def test_the_text_of_any_sampled_words_becomes_the_same_ids(tokenizer: Any) -> None:
    generator = random.Random(0)
    words = range(len(SPECIAL_TOKENS), len(tokenizer))
    for _ in range(1000):
        ids = generator.choices(words, k=12)
        assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_the_chat_template_continues_a_prompt_with_its_response(tokenizer: Any) -> None:
    user = {"role": "user", "content": "face west turn left"}
    prompt = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(
        [user, {"role": "assistant", "content": "* west"}], tokenize=False
    )
    assert prompt == "<|user|>face west turn left<|assistant|>"
    assert whole == prompt + "* west<|end|>"


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    again = make_student(tmp_path / "again", seed=0)
    other = make_student(tmp_path / "other", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for file in folder.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()
    weights = "model.safetensors"
    assert (other / weights).read_bytes() != (folder / weights).read_bytes()


def test_the_folder_loads_in_transformers_with_the_shape_asked_for(tmp_path: Path) -> None:
    shape = StudentShape(num_layers=2, width=32, num_heads=4, num_kv_heads=2, mlp_width=48)
    folder = make_student(tmp_path, seed=0, shape=shape)
    model = AutoModelForCausalLM.from_pretrained(str(folder))
    config = model.config
    assert (config.model_type, config.vocab_size) == ("qwen2", 22)
    assert (config.num_hidden_layers, config.hidden_size) == (2, 32)
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert model.generation_config.eos_token_id == 2
    queries = model.model.layers[0].self_attn.q_proj.weight.detach()
    assert float(queries.std()) == pytest.approx(shape.init_std, rel=0.1)


def test_a_tied_student_stores_one_embedding(tmp_path: Path) -> None:
    tied = load_file(
        make_student(tmp_path / "t", 0, StudentShape(is_tied=True)) / "model.safetensors"
    )
    untied = load_file(make_student(tmp_path / "u", 0) / "model.safetensors")
    assert set(untied) - set(tied) == {"lm_head.weight"}
    assert sum(weight.numel() for weight in untied.values()) == 154_368


def test_the_tiny_example_prepares_rows_whose_answers_are_right(tmp_path: Path) -> None:
    prepare(tmp_path / "out", seed=3)
    prompts: list[str] = []
    for name, count in (("train", 64), ("eval", 16)):
        lines = (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) == count
        for row in rows:
            prompt = row["content"][0]["content"]
            assert check(prompt, row["teacher_response"]).is_right
            prompts.append(prompt)
    assert len(set(prompts)) == 80
    config = json.loads((tmp_path / "out" / "student" / "config.json").read_text())
    halves = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    assert [config[name] % 2 for name in halves] == [0, 0, 0]
