"""Rules for the folders of both models, against the layouts and the lengths of the data."""

from collections.abc import Iterator
from pathlib import Path

from megatron_gad.checks.found import ModelFolder, Models
from megatron_gad.checks.tokenizer import (
    TOKENIZER_FILES,
    check_scorer_tokenizer,
    check_tokenizer,
    find_difference,
    find_other_token,
    highest_id,
)
from megatron_gad.checks.weights import check_weights, type_warnings, value_problems
from megatron_gad.config.data import DataConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.data.chat import generation_stop_ids
from megatron_gad.models.hf_folder import GENERATION
from megatron_gad.models.hf_headers import INDEX, is_pointer, pointer_problem, shown
from megatron_gad.models.layout_rules import shape_problems

# What is read of a folder besides its weights, by the ends of the names.
CONFIG = "config.json"
READ_BESIDES = (".json", ".model", ".jinja", ".txt")


def check_models(
    models: Models, layouts: tuple[ParallelConfig, ParallelConfig], data: DataConfig
) -> Iterator[str]:
    """Yield what is wrong with the folders of both models.

    Args:
        models: what was read of them.
        layouts: of student and discriminator, which have to divide the shapes.
        data: the lengths that have to fit into the context.
    """
    student, discriminator = models.student, models.discriminator
    if not student.path:
        yield "student.path is not set; name a Hugging Face folder: config, safetensors, tokenizer"
    else:
        yield from folder_problems(student)
        yield from _context_problems(student, data)
        num_rows = None if student.shape is None else student.shape.vocab_size
        yield from check_tokenizer(student.named, student.tokenizer, num_rows, data)
        yield from _stop_problems(student)
    if models.has_own_discriminator:
        yield from folder_problems(discriminator, is_scorer=True)
        yield from _context_problems(discriminator, data)
        yield from _reading_problems(student, discriminator, data)
    if models.teacher is not None:
        yield from folder_problems(models.teacher)
        yield from _context_problems(models.teacher, data)
        yield from _teaching_problems(student, models.teacher)
    for folder, layout in models.beside(*layouts):
        table = "parallel." if layout == layouts[0] else "discriminator."
        if folder.shape is not None:
            yield from shape_problems(layout, folder.shape, table, folder.named)
    path = Path(student.path)
    if student.path and path.is_dir() and not _has_tokenizer(path):
        yield (
            f"{student.named} holds no tokenizer ({' or '.join(TOKENIZER_FILES)}); "
            "save it there with save_pretrained() of the model's tokenizer"
        )


def folder_problems(folder: ModelFolder, is_scorer: bool = False) -> Iterator[str]:
    """Yield what a folder lacks to be a model; is_scorer: to be a discriminator's."""
    yield from file_problems(folder)
    yield from check_weights(folder, is_scorer)


def file_problems(folder: ModelFolder) -> Iterator[str]:
    """Yield what is wrong with a folder besides its weights: config.json, git-lfs pointers."""
    path = Path(folder.path)
    if not path.is_dir():
        home = "; ~ is not expanded here" if folder.path.startswith("~") else ""
        yield (
            f"{folder.named} is not a folder{home}; download the model (hf download NAME "
            "--local-dir FOLDER) and name the folder, relative to where the command runs"
        )
        return
    if folder.problem:
        yield f"{folder.named} cannot be used: {folder.problem}"
    elif folder.shape is None and not (path / CONFIG).exists():
        yield f"{folder.named} holds no config.json; {_folder_meant(path)}"
    for file in sorted(path.iterdir()):
        if file.suffix in READ_BESIDES and file.name != INDEX and is_pointer(file):
            yield f"{folder.named} {pointer_problem(file)}"


def _folder_meant(path: Path) -> str:
    """Return which model to name in place of a folder without config.json."""
    for kind in ("snapshots/*", "*"):
        inner = sorted(each.parent for each in path.glob(f"{kind}/{CONFIG}"))
        if inner:
            return f"name a model in it: {shown([str(each) for each in inner])}"
    return "name the folder of a Hugging Face model"


def reading_problems(folder: ModelFolder) -> Iterator[str]:
    """Yield why a run could not read with a folder's tokenizer; nothing if it has none."""
    if folder.shape is not None:
        rows = folder.shape.vocab_size
        yield from check_tokenizer(folder.named, folder.tokenizer, rows, DataConfig())


def check_values(models: Models) -> Iterator[str]:
    """Yield which weights of both models are not finite; reads them all."""
    yield from value_problems(models.student)
    if models.has_own_discriminator:
        yield from value_problems(models.discriminator)


def model_warnings(models: Models, is_bf16: bool) -> Iterator[str]:
    """Yield what is to be known of models that a run takes; is_bf16: it trains in bfloat16."""
    yield from type_warnings(models.student, is_bf16)
    if models.has_own_discriminator:
        yield from type_warnings(models.discriminator, is_bf16)


def _stop_problems(folder: ModelFolder) -> Iterator[str]:
    """Yield why the ids of generation_config.json cannot end a response."""
    if folder.tokenizer.loaded is None or any(map(is_pointer, Path(folder.path).glob(GENERATION))):
        return  # said already
    try:
        generation_stop_ids(Path(folder.path), len(folder.tokenizer.loaded))
    except ValueError as error:
        yield f"{folder.named}: {str(error).removeprefix(f'{folder.path}/')}"


def _context_problems(folder: ModelFolder, data: DataConfig) -> Iterator[str]:
    total = data.max_prompt_tokens + data.max_response_tokens
    if folder.shape is not None and total > folder.shape.max_position_embeddings:
        yield (
            f"data.max_prompt_tokens + data.max_response_tokens = {total} exceeds the "
            f"{folder.shape.max_position_embeddings} positions of {folder.named}; make one of them "
            "smaller"
        )


def _reading_problems(
    student: ModelFolder, discriminator: ModelFolder, data: DataConfig
) -> Iterator[str]:
    """Yield what keeps a discriminator from reading: its own tokens, or else the student's."""
    found, shape = discriminator.tokenizer, discriminator.shape
    if found.problem:
        yield f"{discriminator.named} {found.problem}"
    difference = find_difference(student.tokenizer, found)
    if difference:
        num_rows = None if shape is None else shape.vocab_size
        yield from check_scorer_tokenizer(discriminator.named, found, num_rows, data, difference)
    elif student.tokenizer.loaded is not None and shape is not None:
        token, highest = highest_id(student.tokenizer)
        if highest >= shape.vocab_size:
            yield (
                f"{discriminator.named} has {shape.vocab_size} token ids, and reads those of the "
                f"student, whose tokenizer has ids up to {highest} ({token!r}); use a model with "
                "the student's tokenizer, put its own into the folder, or leave it out"
            )


def _teaching_problems(student: ModelFolder, teacher: ModelFolder) -> Iterator[str]:
    """Yield why a teacher's probabilities are not those of the student's tokens."""
    remedy = "take a teacher of the student's family, or a stage that learns from texts alone"
    if teacher.tokenizer.problem:
        yield f"{teacher.named} {teacher.tokenizer.problem}"
    elif teacher.shape is not None and teacher.tokenizer.loaded is None:
        yield (
            f"{teacher.named} holds no tokenizer ({' or '.join(TOKENIZER_FILES)}), which has to be "
            "compared with the student's; save it there with save_pretrained() of its tokenizer"
        )
    difference = find_difference(student.tokenizer, teacher.tokenizer)
    difference = difference or find_other_token(student.tokenizer, teacher.tokenizer)
    if difference:
        yield f"{teacher.named} gives probabilities of other tokens: {difference}; {remedy}"
    if student.shape is None or teacher.shape is None:
        return
    ours, theirs = student.shape.vocab_size, teacher.shape.vocab_size
    if theirs < ours:
        yield (
            f"{teacher.named} has {theirs} token ids, and the student {ours}: those that the "
            f"teacher has not, it cannot judge; {remedy}"
        )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)
