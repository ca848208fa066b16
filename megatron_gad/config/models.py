"""The two models and their optimizer."""

from dataclasses import dataclass
from typing import Literal

from megatron_gad.config.layout import OwnLayout

ScoreKind = Literal["last_token", "sum", "mean"]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW of both models, and the schedule of their rates.

    Attributes:
        min_lr: learning rate at the end of the cosine.
        lr_decay_style: the schedule, counted from the start of each stage.
        lr_warmup_steps: steps in which the rate rises linearly from 0, at the start of each stage.
        weight_decay: decay of AdamW; norms and biases have none.
        adam_beta1: decay of the first moment.
        adam_beta2: decay of the second moment.
        clip_grad: largest norm of the whole gradient of a model; a larger one is scaled down.
            0: never.
    """

    min_lr: float = 0.0
    lr_decay_style: Literal["constant", "cosine"] = "constant"
    lr_warmup_steps: int = 0
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    clip_grad: float = 0.2


@dataclass(frozen=True)
class StudentConfig:
    """The model that learns.

    Attributes:
        path: Hugging Face folder with config, safetensors weights and tokenizer, or the name of a
            model of the hub, as ``NAME`` or ``NAME@REVISION``.
        lr: peak learning rate, unless the stage has its own.
    """

    path: str = ""
    lr: float = 1e-6


@dataclass(frozen=True)
class DiscriminatorConfig(OwnLayout):
    """The model that scores.

    Attributes:
        path: Hugging Face folder or name, as student.path; empty starts from the student's weights
            when the stage begins. A tokenizer there that reads otherwise than the student's is
            used; it needs a chat template.
        lr: peak learning rate, unless the stage has its own.
        score: read the last token's value, or the sum or mean of the values of all response
            tokens.
        head_std: standard deviation of the scalar head's first weights.
        split_groups: for groups that do not fit in memory as a whole: score first, then train row
            by row on the gradients of the scores. Equal gradients for one more forward pass.
    """

    path: str = ""
    lr: float = 1e-6
    score: ScoreKind = "last_token"
    head_std: float = 0.02
    split_groups: bool = False
