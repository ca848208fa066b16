"""What is said of a teacher that cannot teach a student its probabilities."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_gad.checks.run import check_config
from megatron_gad.config.run import RunConfig
from tests.tiny import make_hf_folder
from tests.tiny_run import make_run
from tests.tiny_tokenizer import make_tokenizer

FAMILY = "take a teacher of the student's family, or a stage that learns from texts alone"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run of the stage, with a larger teacher of the student's tokenizer."""
    folder = tmp_path_factory.mktemp("run")
    config = make_run(folder)
    teacher = make_teacher(folder / "teacher")
    taught = replace(config.white_box, teacher=str(teacher), prompts_per_step=8)
    return replace(config, stages=("white_box",), white_box=taught)


def make_teacher(folder: Path, **shape: Any) -> Path:
    shape = {"vocab_size": 390, "num_hidden_layers": 4, "max_position_embeddings": 256} | shape
    make_hf_folder(folder, **shape)
    make_tokenizer(folder)
    return folder


def problems(
    good: RunConfig, teacher: Path | str, world_size: int = 1, **parallel: int
) -> list[str]:
    config = replace(good, white_box=replace(good.white_box, teacher=str(teacher)))
    layout = replace(good.parallel, **parallel)
    return check_config(replace(config, parallel=layout), world_size)


def test_a_teacher_of_the_same_tokenizer_is_accepted(good: RunConfig) -> None:
    assert check_config(good, 1) == []


def test_a_teacher_is_wanted(good: RunConfig) -> None:
    assert problems(good, "") == [
        "white_box.teacher is not set; name the Hugging Face folder of a teacher with the "
        "student's tokenizer, or take a stage that learns from texts alone"
    ]
    (message,) = problems(good, "models/none")
    assert message.startswith("white_box.teacher = 'models/none' is not a folder; download")


def test_a_teacher_without_a_tokenizer_is_refused(good: RunConfig, tmp_path: Path) -> None:
    make_hf_folder(tmp_path, vocab_size=390, max_position_embeddings=256)
    assert problems(good, tmp_path) == [
        f"white_box.teacher = '{tmp_path}' holds no tokenizer (tokenizer.json or tokenizer.model "
        "or vocab.json), which has to be compared with the student's; save it there with "
        "save_pretrained() of its tokenizer"
    ]


def test_two_ids_that_changed_places_are_found_wherever_they_are(
    good: RunConfig, tmp_path: Path
) -> None:
    teacher = make_teacher(tmp_path)
    file = teacher / "tokenizer.json"
    stored = json.loads(file.read_text())
    vocab = stored["model"]["vocab"]
    names = {number: token for token, number in vocab.items()}
    # Two bytes that no sample text has.
    first, second = (next(n for n, t in names.items() if t == c) for c in ("\u0135", "\u0136"))
    vocab[names[first]], vocab[names[second]] = second, first
    file.write_text(json.dumps(stored))
    (message,) = problems(good, teacher)
    number = min(first, second)
    assert message == (
        f"white_box.teacher = '{teacher}' gives probabilities of other tokens: id {number} is "
        f"{names[number]!r} for the student and {names[first + second - number]!r} for it; {FAMILY}"
    )


def test_a_teacher_with_fewer_ids_is_refused(good: RunConfig, tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path, vocab_size=383)
    assert problems(good, teacher) == [
        f"white_box.teacher = '{teacher}' has 383 token ids, and the student 384: those that the "
        f"teacher has not, it cannot judge; {FAMILY}"
    ]


def test_the_students_layout_has_to_divide_the_teacher_too(good: RunConfig, tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path, num_hidden_layers=3)
    (message,) = problems(good, teacher, 2, pipeline_model_parallel_size=2)
    assert message.startswith(
        "parallel.pipeline_model_parallel_size = 2 does not divide num_hidden"
    )
    assert f"of white_box.teacher = '{teacher}'" in message


def test_a_context_that_is_too_short_is_refused(good: RunConfig, tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path, max_position_embeddings=128)
    (message,) = problems(good, teacher)
    assert "192 exceeds the 128 positions of white_box.teacher" in message


def test_a_server_knows_single_tokens_alone(good: RunConfig) -> None:
    assert problems(good, "http://teacher:30000") == [
        "white_box.loss = 'reverse_kl' needs the teacher's whole distribution, but white_box."
        "teacher = 'http://teacher:30000' answers for single tokens; set white_box.loss = "
        "'sampled_kl', or name a folder"
    ]
    taught = replace(good.white_box, teacher="http://teacher:30000", loss="sampled_kl")
    assert check_config(replace(good, white_box=taught), 1) == []
