"""What a run would find here, read once and handed to the rules."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import PretrainedConfig

from megatron_gad.checks.compute import Machine, this_machine
from megatron_gad.checks.tokenizer import FoundTokenizer, read_tokenizer
from megatron_gad.config.layout import HOST_GPUS, ParallelConfig
from megatron_gad.config.run import RunConfig
from megatron_gad.environment import is_started_by_torchrun, local_world_size
from megatron_gad.models.families import load_hf_config, mixture_of
from megatron_gad.models.hf_headers import StoredWeights, is_pointer, read_headers
from megatron_gad.models.mixtures import Mixture


@dataclass(frozen=True)
class ModelFolder:
    """One model's folder.

    named: the setting and its value, as messages name the model.
    path: the folder; empty if none is set.
    shape: its config.json; None if there is none, or one that cannot be used.
    problem: why config.json cannot be used; empty if there is none.
    weights: what the headers of its safetensors say; None if there is no folder.
    tokenizer: its tokenizer; without one of its own the discriminator reads as the student.
    """

    named: str
    path: str
    shape: PretrainedConfig | None = None
    problem: str = ""
    weights: StoredWeights | None = None
    tokenizer: FoundTokenizer = field(default_factory=FoundTokenizer)

    @property
    def mixture(self) -> Mixture | None:
        """The model's experts; None if it is dense, or not known."""
        return mixture_of(self.shape) if self.shape is not None else None


@dataclass(frozen=True)
class Models:
    """The folders of both models.

    discriminator: the student's folder if the discriminator has none of its own.
    teacher: of a stage that needs its probabilities; None without such a stage.
    """

    student: ModelFolder
    discriminator: ModelFolder
    has_own_discriminator: bool
    teacher: ModelFolder | None = None

    def beside(
        self, student: ParallelConfig, discriminator: ParallelConfig
    ) -> list[tuple[ModelFolder, ParallelConfig]]:
        """Return each folder with a layout that its shape has to fit, none of them twice."""
        pairs = [(self.student, student)]
        if self.has_own_discriminator or student != discriminator:
            pairs.append((self.discriminator, discriminator))
        if self.teacher is not None:
            pairs.append((self.teacher, student))
        return [(folder, layout) for folder, layout in pairs if folder.path]


@dataclass(frozen=True)
class Found:
    """Everything that the rules compare a configuration with.

    world_size: ranks that the run will have. host_size: those of them on one host.
    """

    models: Models
    machine: Machine
    world_size: int
    host_size: int


def find(config: RunConfig, world_size: int) -> Found:
    """Look up what a configuration names, and what this machine has; starts nothing.

    world_size: ranks that the run will have.
    """
    models = read_models(config.student.path, config.discriminator.path)
    taught = config.white_box
    if "white_box" in config.stages and taught.teacher and not taught.is_served:
        teacher = read_folder("white_box.teacher", taught.teacher)
        models = replace(models, teacher=with_tokenizer(teacher, needs_template=False))
    return Found(
        models=models,
        machine=this_machine(),
        world_size=world_size,
        # Without torchrun nobody knows yet how many ranks a host will have.
        host_size=local_world_size() if is_started_by_torchrun() else HOST_GPUS,
    )


def read_models(student: str, discriminator: str) -> Models:
    """Read both folders; discriminator is empty if it starts from the student."""
    own = with_tokenizer(read_folder("student.path", student))
    if discriminator:
        other = read_folder("discriminator.path", discriminator)
        return Models(own, with_tokenizer(other, needs_template=False), True)
    shared = replace(own, named=f"{own.named}, from which the discriminator starts")
    return Models(own, shared, False)


def with_tokenizer(folder: ModelFolder, needs_template: bool = True) -> ModelFolder:
    """Read the tokenizer of a folder; how it is read depends on config.json."""
    if folder.shape is None:
        return folder
    found = read_tokenizer(Path(folder.path), folder.shape, needs_template)
    return replace(folder, tokenizer=found)


def read_folder(key: str, path: str) -> ModelFolder:
    """Read what a folder holds; key: the setting that names it."""
    folder = ModelFolder(f"{key} = {path!r}", path)
    if not path or not Path(path).is_dir():
        return folder
    folder = replace(folder, weights=read_headers(Path(path)))
    file = Path(path) / "config.json"
    if not file.is_file() or is_pointer(file):
        return folder
    try:
        return replace(folder, shape=load_hf_config(path))
    except (ValueError, OSError) as error:
        return replace(folder, problem=str(error))
