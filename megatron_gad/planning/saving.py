"""What writing a checkpoint takes of a host's memory."""

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_gad.config.run import RunConfig
from megatron_gad.models.families import load_hf_config
from megatron_gad.planning.devices import GIB
from megatron_gad.planning.from_config import configured_layout, stage_works
from megatron_gad.planning.layout import Layout, stage_parameters
from megatron_gad.planning.shapes import ModelShape, shape_from_config

FLOAT32_BYTES = 4


def saved_bytes(shape: ModelShape, layout: Layout, bf16: bool, is_scorer: bool) -> int:
    """Return the bytes that one rank writes of a model with its optimizer, on the fullest stage.

    n (b_weight + b_state) / C for the n parameters of a rank, with C the ranks that hold the same:
    each writes an equal share. States are both moments and main weights, all in float32; in fp32
    only the distributed optimizer has main weights beside the weights.
    """
    weight = 2 if bf16 else FLOAT32_BYTES
    has_main = bf16 or layout.distributed_optimizer
    each = weight + (3 if has_main else 2) * FLOAT32_BYTES
    return _written(shape, layout, each, is_scorer)


def _written(shape: ModelShape, layout: Layout, each: int, is_scorer: bool) -> int:
    """Return a rank's share of so many bytes for each parameter, on the fullest stage."""
    return max(
        (-(-stage.dense // layout.copies) + -(-stage.expert // layout.expert_copies)) * each
        for stage in stage_parameters(shape, layout, is_scorer)
    )


@dataclass(frozen=True)
class SaveCopies:
    """What one rank of the fullest stage copies to host memory to write a checkpoint of it.

    parts: bytes of each model with its optimizer, and of the reference.
    in_background: all are kept until they are written; else one part at a time is.
    """

    parts: Mapping[str, int]
    in_background: bool

    @property
    def num_bytes(self) -> int:
        """Return the most that is held at once."""
        return sum(self.parts.values()) if self.in_background else max(self.parts.values())

    def describe(self) -> str:
        """Return the bytes in words."""
        kept = "all of it until it is written" if self.in_background else "a model at a time"
        return f"a save copies {self.num_bytes / GIB:.1f} GiB a rank to host memory, {kept}"


def save_copies(
    student: ModelShape,
    discriminator: ModelShape | None,
    layout: Layout,
    bf16: bool,
    has_reference: bool,
    in_background: bool,
) -> SaveCopies:
    """Return the copies of a save. On the device it needs no more than the states that are there.

    discriminator: None without one. layout: of the student.
    """
    parts = {"student": saved_bytes(student, layout, bf16, is_scorer=False)}
    if discriminator is not None:
        own = layout.of_discriminator
        parts["discriminator"] = saved_bytes(discriminator, own, bf16, is_scorer=True)
    if has_reference:
        weight = 2 if bf16 else FLOAT32_BYTES
        parts["reference"] = _written(student, layout, weight, is_scorer=False)
    return SaveCopies(parts, in_background)


def copies_of_run(config: RunConfig, world_size: int) -> SaveCopies:
    """Return the copies of a run's saves."""
    student = _shape(config.student.path)
    discriminator = _shape(config.discriminator.path or config.student.path)
    layout = configured_layout(config, world_size, has_experts=discriminator.num_experts > 0)
    return save_copies(
        student,
        discriminator if config.uses_discriminator else None,
        layout,
        config.compute.bf16,
        has_reference=any(work.has_reference for work in stage_works(config)),
        in_background=config.checkpoint.async_save,
    )


def check_save(copies: SaveCopies, ranks_of_host: int, available: int) -> None:
    """Raise ValueError if a host's memory does not hold the copies of its ranks.

    available: bytes that the host has left.
    """
    needed = copies.num_bytes * ranks_of_host
    if needed <= available:
        return
    what, remedy = "a save keeps", "spread the run over more hosts"
    if copies.in_background:
        what = "checkpoint.async_save = true keeps"
        remedy = f"leave it out, or {remedy}"
    raise ValueError(
        f"{what} copies of {needed / GIB:.1f} GiB for {ranks_of_host} rank(s) on this host, which "
        f"has {available / GIB:.1f} GiB left; {remedy}"
    )


def _shape(folder: str) -> ModelShape:
    return shape_from_config(load_hf_config(folder).to_dict())
