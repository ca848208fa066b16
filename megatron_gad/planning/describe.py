"""What ``--dry-run`` prints: what a run is going to do, in words and numbers."""

from collections.abc import Iterator, Sequence

from megatron_gad.checks.compute import describe_kernels, this_machine
from megatron_gad.checks.found import Models, read_models
from megatron_gad.checks.inputs import open_codecs, read_instructed, read_rows
from megatron_gad.checks.models import model_warnings
from megatron_gad.checks.weights import describe_types
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.config.run import RunConfig
from megatron_gad.config.stage_section import StageSection
from megatron_gad.config.toml import to_toml
from megatron_gad.data.dataset import HUB
from megatron_gad.data.hub import is_here
from megatron_gad.models.families import load_hf_config
from megatron_gad.models.hub import with_model_names
from megatron_gad.models.layout_rules import data_parallel_size
from megatron_gad.planning.choice import describe_residency
from megatron_gad.planning.of_run import plan_residency
from megatron_gad.planning.preview import describe_reading_of
from megatron_gad.planning.saving import copies_of_run
from megatron_gad.planning.shapes import ModelShape, shape_from_config
from megatron_gad.training.settings import TrainerSettings


def describe_run(
    config: RunConfig,
    world_size: int,
    gpu_type: str | None = None,
    changes: Sequence[str] = (),
    models: Models | None = None,
) -> str:
    """Return the resolved plan of a configuration that passed its checks.

    Reads and tokenises the data, unless it would have to be downloaded first.

    gpu_type: of the run's GPUs where they are not here; by default that of this machine's.
    changes: settings that differ from those of the checkpoint that the run goes on from.
    models: what was read of both folders, if it was.

    Raises:
        ValueError: the data cannot be used; names file and row.
    """
    models = models or read_models(config.student.path, config.discriminator.path)
    lines = [
        f"Plan for {world_size} rank(s); nothing was started.",
        *_layout_lines(config, world_size),
        *_model_lines(config, models),
    ]
    data, num_prompts = _data_lines(config, models)
    lines += [*data, *_evaluation_lines(config, models)]
    if num_prompts is not None:
        config.check_rows(num_prompts)
    reason, *held = describe_residency(plan_residency(config, world_size, gpu_type))
    lines.append(_line("residency", reason))
    lines += [_line("", text) for text in held]
    lines.append(_line("", copies_of_run(config, world_size).describe()))
    for section in config.stage_sections:
        lines.append(_line(section.name, _describe_stage(config, section, num_prompts)))
    lines += [_line("changed", change) for change in changes]
    lines += [_line("writes", _describe_files(config)), "", "Resolved configuration:", ""]
    return "\n".join(lines) + "\n" + to_toml(with_model_names(config))


def _line(title: str, text: str) -> str:
    return f"  {title:<15}{text}"


def _layout_lines(config: RunConfig, world_size: int) -> Iterator[str]:
    compute = config.compute
    yield _line("layout", _describe_layout(config.parallel, world_size))
    shape = _shape(config.discriminator.path or config.student.path)
    own = config.discriminator_layout(has_experts=shape.num_experts > 0)
    if own != config.parallel and config.uses_discriminator:
        yield _line("", f"of the discriminator: {_describe_layout(own, world_size)}")
    precision = "bf16" if compute.bf16 else "fp32"
    if compute.fp8_format:
        precision = f"FP8 {compute.fp8_format} ({compute.fp8_recipe})"
    recompute = compute.recompute_granularity or "no"
    size = f"{compute.micro_batch_size} row(s)"
    if compute.max_tokens_per_microbatch is not None:
        size = f"at most {compute.max_tokens_per_microbatch} tokens"
    settings = TrainerSettings(config.parallel, compute, config.seed)
    packed = ", packed" if settings.is_packed else ""
    yield _line(
        "compute",
        f"{precision}, {compute.transformer_impl} layers, microbatches of {size}{packed}, "
        f"{recompute} recompute",
    )
    yield _line("prompts", _describe_prompts(config, own))
    yield _line("kernels here", describe_kernels(compute, this_machine()))


def _describe_prompts(config: RunConfig, own: ParallelConfig) -> str:
    """Say for which model a group's prompt is computed once. own: the discriminator's layout."""
    layouts = {"student": config.parallel}
    if config.uses_discriminator:
        layouts["discriminator"] = own
    reasons = {
        model: TrainerSettings(layout, config.compute, config.seed).why_prompts_repeat
        for model, layout in layouts.items()
    }
    once = [model for model, reason in reasons.items() if not reason]
    words = [f"once for the responses of a group ({', '.join(once)})"] if once else []
    words += [
        f"anew for each response ({model}: {reason})" for model, reason in reasons.items() if reason
    ]
    return "; ".join(words)


def _describe_layout(layout: ParallelConfig, world_size: int) -> str:
    sizes = [f"TP {layout.tensor_model_parallel_size}"]
    sizes.append(f"PP {layout.pipeline_model_parallel_size}")
    if layout.context_parallel_size > 1:
        sizes.append(f"CP {layout.context_parallel_size}")
    words = [" x ".join([*sizes, f"DP {data_parallel_size(layout, world_size)}"])]
    if layout.virtual_pipeline_model_parallel_size is not None:
        words.append(f"VPP {layout.virtual_pipeline_model_parallel_size}")
    if layout.sequence_parallel:
        words.append("sequence parallel")
    if layout.use_distributed_optimizer:
        words.append("distributed optimizer")
    return ", ".join(words)


def _model_lines(config: RunConfig, models: Models) -> Iterator[str]:
    is_bf16 = config.compute.bf16
    read_as = "bfloat16" if is_bf16 else "float32"
    yield _line("student", _describe_model(config.student.path, is_scorer=False))
    yield _line("", f"weights of type {describe_types(models.student)}, read as {read_as}")
    if "white_box" in config.stages:
        taught = config.white_box
        where = f"{taught.teacher}: a server, which the run asks for its tokenizer when it starts"
        yield _line(
            "teacher", where if taught.is_served else _describe_model(taught.teacher, False)
        )
    if config.uses_discriminator:
        path = config.discriminator.path
        start = "" if path else "started from the student: "
        text = _describe_model(path or config.student.path, is_scorer=True)
        yield _line("discriminator", start + text)
        if path:
            types = describe_types(models.discriminator)
            yield _line("", f"weights of type {types}, read as {read_as}")
    for warning in model_warnings(models, is_bf16):
        yield _line("", f"warning: {warning}")


def _shape(folder: str) -> ModelShape:
    return shape_from_config(load_hf_config(folder).to_dict())


def _describe_model(path: str, is_scorer: bool) -> str:
    shape = _shape(path)
    return (
        f"{path}: {shape.model_type}, {shape.num_layers} layers, "
        f"width {shape.hidden_size}, {shape.num_parameters(is_scorer):,} parameters"
    )


def _data_lines(config: RunConfig, models: Models) -> tuple[list[str], int | None]:
    """Return what is in the data and how the first row is read, and how many prompts if known."""
    lines: list[str] = []
    num_prompts = None
    codecs = open_codecs(config, models)
    for title, path in (("data", config.data.path), ("held out", config.data.eval_path)):
        if path.startswith(HUB) and not is_here(path.removeprefix(HUB)):
            lines.append(
                _line(title, f"{path}: downloaded when the run starts; unknown until then")
            )
        elif path:
            loaded = read_rows(config, codecs, held_out=title != "data")
            counts = loaded.counts.items()
            found = ", ".join(f"{name} {number:,}" for name, number in counts if number)
            warnings = [f"warning: {warning}" for warning in loaded.warnings]
            lines.append(_line(title, f"{path}: {found}"))
            lines += [_line("", note) for note in (*loaded.notes, *warnings)]
            if title == "data":
                num_prompts = loaded.counts["num_prompts"]
                seen = describe_reading_of(models, codecs, loaded.prompts[0])
                lines += [_line(*each) for each in seen]
    return lines, num_prompts


def _evaluation_lines(config: RunConfig, models: Models) -> Iterator[str]:
    """Yield what is measured while the run goes on, and what that takes."""
    own = config.evaluation
    if not own.interval:
        return
    _, instructions = read_instructed(config, open_codecs(config, models))
    parts = [f"up to {own.num_prompts} held-out prompts"]
    if instructions:
        parts.append(f"{len(instructions)} checkable instructions ({own.instructions})")
    if own.judge_url:
        parts.append(f"up to {2 * own.num_prompts} calls to the judge {own.judge_model}")
    yield _line("evaluation", f"every {own.interval} steps: {', '.join(parts)}")


def _describe_stage(config: RunConfig, section: StageSection, num_prompts: int | None) -> str:
    work = section.work(config.gad, config.discriminator.split_groups)
    batch = f"{work.num_prompts} responses"
    if section.uses_engine:
        batch = f"{work.num_prompts} prompts x {work.group_size} samples"
    rates = f"lr {section.student_rate(config.student.lr):g}"
    if section.uses_discriminator:
        rates += f", of the discriminator {section.discriminator_rate(config.discriminator.lr):g}"
    if section.steps is not None:
        length = f"{section.steps:,} steps"
    elif num_prompts is None:
        length = f"{section.epochs:g} epoch(s)"
    else:
        length = f"{section.num_steps(num_prompts):,} steps ({section.epochs:g} epoch(s))"
    end = section.early_end()
    return f"{length} of {batch}, {rates}{'; ' + end if end else ''}"


def _describe_files(config: RunConfig) -> str:
    checkpoint = config.checkpoint
    interval = checkpoint.save_interval
    when = f"every {interval} steps and " if interval else ""
    exports = ", ".join(f"{name}_hf/" for name in checkpoint.export)
    return (
        f"{checkpoint.save}: config.toml, metrics.jsonl, samples, report.html, "
        f"checkpoints {when}at the end of each stage{', ' + exports if exports else ''}"
    )
