"""What a run reads, as it was checked: the tokenizers opened once, the rows read once."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_gad.checks.found import Models, read_models
from megatron_gad.checks.models import check_models
from megatron_gad.checks.tokenizer import check_texts, find_difference
from megatron_gad.config.run import RunConfig
from megatron_gad.data.cache import fill_cache, find_cache, read_cache
from megatron_gad.data.chat import ChatCodec
from megatron_gad.data.codecs import Codecs
from megatron_gad.data.dataset import LoadedPrompts, load_prompts
from megatron_gad.types import Instructed, Prompt

PROMPTS_FOLDER = "prompts"
# What the first process of a run has read: the rows to train on, and under True the held-out ones.
ReadRows = Mapping[bool, LoadedPrompts]


def read_codecs(config: RunConfig) -> Codecs:
    """Return what ``open_codecs`` does, of folders that are looked at now."""
    return open_codecs(config, read_models(config.student.path, config.discriminator.path))


def open_codecs(config: RunConfig, models: Models) -> Codecs:
    """Return what turns text into ids, from the tokenizers of folders that were checked."""
    data, student, discriminator = config.data, models.student, models.discriminator
    codec = ChatCodec.from_config(student.path, data, student.tokenizer.loaded)
    codecs = Codecs(codec, student.path)
    if not (models.has_own_discriminator and config.uses_discriminator):
        return codecs
    own = discriminator.tokenizer
    if not find_difference(student.tokenizer, own):
        return codecs
    caps = data.max_prompt_tokens, data.max_response_tokens
    scorer = ChatCodec.of_scorer(own.loaded, caps, data.chat_template_kwargs)
    return Codecs(codec, student.path, scorer, discriminator.path)


def look_at_what_is_here(config: RunConfig, reads_rows: bool) -> tuple[list[str], int | None]:
    """Return what a run would refuse of models and data, and the number of its usable rows.

    For plans of runs elsewhere: a model or data that is not here is not missed, nor one of which
    there is no more than its config.json.

    reads_rows: False leaves the data alone. The number is None if it was not read.
    """
    folders = (config.student.path, config.discriminator.path)
    student, discriminator = (path if _holds_weights(path) else "" for path in folders)
    if not student or (config.discriminator.path and not discriminator):
        return [], None
    models = read_models(student, discriminator)
    own = config.discriminator_layout(models.discriminator.mixture is not None)
    problems = [*check_models(models, (config.parallel, own), config.data)]
    is_here = bool(config.data.path) and Path(config.data.path).exists()
    if problems or not (is_here and reads_rows):
        return problems, None
    try:
        return [], len(read_rows(config, open_codecs(config, models)).prompts)
    except ValueError as error:
        return [str(error)], None


def _holds_weights(path: str) -> bool:
    return bool(path) and any(Path(path).glob("*.safetensors*"))


def read_all_rows(config: RunConfig, codecs: Codecs) -> ReadRows:
    """Read all data of a run, keeping what is large in its directory, before anything starts.

    Raises:
        ValueError: rows cannot be used; names data and row.
    """
    read_instructed(config, codecs)
    sets = [False, True] if config.data.eval_path else [False]
    return {held_out: read_rows(config, codecs, held_out, may_write=True) for held_out in sets}


def read_rows(
    config: RunConfig, codecs: Codecs, held_out: bool = False, may_write: bool = False
) -> LoadedPrompts:
    """Return the rows to train on, or the held-out ones: from the run directory, or read anew.

    may_write: keep large data in the run directory.

    Raises:
        ValueError: rows cannot be used; names data and row.
    """
    folder = Path(config.checkpoint.save) / PROMPTS_FOLDER
    find = fill_cache if may_write else find_cache
    file = find(folder, config.data, codecs, held_out)
    path = config.data.eval_path if held_out else config.data.path
    if file is not None:
        loaded = read_cache(file)
    else:
        scorer = codecs.scorer
        loaded = load_prompts(config.data, codecs.student, path, held_out, scorer=scorer)
    for problem in check_texts(codecs.student, loaded.prompts):
        raise ValueError(f"{path}: {problem}")
    return loaded


def read_instructed(
    config: RunConfig, codecs: Codecs
) -> tuple[Sequence[Instructed], Sequence[Prompt]]:
    """Return the instructions of a run's evaluations, and the prompts that ask for them.

    Raises:
        ValueError: they cannot be used; names the file and the line, or the prompt.
    """
    own = config.evaluation
    if not (own.instructions and own.interval):
        return (), ()
    # What only runs with instructions need, and what the extra [evaluate] installs.
    from megatron_gad.evaluation.instructions.accuracy import read_instructions  # noqa: PLC0415
    from megatron_gad.evaluation.instructions.prompts import instruction_prompts  # noqa: PLC0415

    try:
        instructions = read_instructions(own.instructions)
        prompts = instruction_prompts(instructions, codecs.student, config.data.system_prompt)
    except ValueError as error:
        raise ValueError(f"evaluation.instructions = {own.instructions!r}: {error}") from error
    return instructions, prompts
