"""Optimizer, learning-rate schedule and clipping of one model."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW without decay on norms and biases.

    lr: learning rate where the stage gives none.
    lr_decay_style, lr_warmup_steps: the schedule, counted from the start of each stage.
    min_lr: end of the cosine.
    clip_grad: bound of the global gradient norm; 0: none.
    """

    lr: float = 1e-6
    min_lr: float = 0.0
    lr_decay_style: Literal["constant", "cosine"] = "constant"
    lr_warmup_steps: int = 0
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    clip_grad: float = 0.2
