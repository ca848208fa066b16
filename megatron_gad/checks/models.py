"""Checks of both models' Hugging Face folders against the layout and the data's lengths."""

from collections.abc import Iterator
from pathlib import Path

from megatron_gad.config.data import DataConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.models.families import load_hf_config
from megatron_gad.models.layout_rules import shape_problems

# One of these makes a tokenizer that transformers can load.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def check_models(
    student: str,
    discriminator: str,
    layouts: tuple[ParallelConfig, ParallelConfig],
    data: DataConfig,
) -> Iterator[str]:
    """Yield what is wrong with the folders of both models.

    Args:
        student: student.path.
        discriminator: discriminator.path; empty where it starts from the student.
        layouts: of student and discriminator, which have to divide the shapes.
        data: the lengths that have to fit into the context.
    """
    if not student:
        yield "student.path is not set; name a Hugging Face folder: config, safetensors, tokenizer"
    keys = "parallel." if layouts[0] == layouts[1] else "discriminator."
    if student:
        yield from _model_problems("student", student, layouts[0], "parallel.", data)
    if discriminator:
        yield from _model_problems("discriminator", discriminator, layouts[1], keys, data)
    elif student and layouts[0] != layouts[1]:
        yield from _student_shape_problems(student, layouts[1])
    if student and discriminator:
        yield from _vocabulary_mismatch(student, discriminator)
    if student and not _has_tokenizer(Path(student)) and Path(student).is_dir():
        yield (
            f"student.path = {student!r} holds no tokenizer ({' or '.join(TOKENIZER_FILES)}); "
            "save it there with save_pretrained() of the model's tokenizer"
        )


def _model_problems(
    table: str, path: str, layout: ParallelConfig, keys: str, data: DataConfig
) -> Iterator[str]:
    """Yield what is wrong with a folder, or else with its model's shape."""
    problems = list(_folder_problems(table, Path(path)))
    yield from problems or _shape_problems(table, path, layout, keys, data)


def _student_shape_problems(path: str, layout: ParallelConfig) -> Iterator[str]:
    """Yield what a layout of its own does not divide in a discriminator made from the student."""
    try:
        shape = load_hf_config(path)
    except (ValueError, OSError):
        return  # reported for the student
    model = f"student.path = {path!r}, from which the discriminator starts"
    yield from shape_problems(layout, shape, "discriminator.", model)


def _folder_problems(table: str, folder: Path) -> Iterator[str]:
    """Yield what a folder lacks to be a model."""
    key = f"{table}.path = {str(folder)!r}"
    if not folder.is_dir():
        yield (
            f"{key} is not a folder; download the model (hf download NAME "
            "--local-dir FOLDER) and name the folder, relative to where the command runs"
        )
        return
    if not (folder / "config.json").is_file():
        yield f"{key} holds no config.json; name the folder of a Hugging Face model"
    if not any(folder.glob("*.safetensors")):
        yield f"{key} holds no *.safetensors; save the model with save_pretrained() of transformers"


def _vocabulary_mismatch(student: str, discriminator: str) -> Iterator[str]:
    """Yield a message where the discriminator cannot read the student's token ids."""
    try:
        read = load_hf_config(discriminator).vocab_size
        written = load_hf_config(student).vocab_size
    except (ValueError, OSError):
        return  # reported for the folder itself
    if read < written:
        yield (
            f"discriminator.path = {discriminator!r} has {read} token ids, the student {written}; "
            "both read the same ids: use a model with the student's tokenizer, or leave it out"
        )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def _shape_problems(
    table: str, path: str, layout: ParallelConfig, keys: str, data: DataConfig
) -> Iterator[str]:
    """Yield what does not divide or fit; keys: what stands before the layout's."""
    try:
        shape = load_hf_config(path)
    except (ValueError, OSError) as error:
        yield f"{table}.path = {path!r} cannot be used: {error}"
        return
    yield from shape_problems(layout, shape, keys, f"{table}.path = {path!r}")
    context = shape.max_position_embeddings
    total = data.max_prompt_tokens + data.max_response_tokens
    if total > context:
        yield (
            f"data.max_prompt_tokens + data.max_response_tokens = {total} exceeds the "
            f"{context} positions of {table}.path = {path!r}; make one of them smaller"
        )
