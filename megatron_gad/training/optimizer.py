"""AdamW over a Megatron model, and its learning-rate schedule."""

from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.models import OptimizerConfig
from megatron_gad.training.mixed_precision import find_float32_weights_first


def build_optimizer(
    chunks: list[Any], config: OptimizerConfig, lr: float, compute: ComputeConfig, distributed: bool
) -> MegatronOptimizer:
    """Return AdamW over the model's chunks; norms and biases get no weight decay."""
    options = MegatronOptimizerConfig(
        optimizer="adam",
        lr=lr,
        min_lr=min(config.min_lr, lr),
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        clip_grad=config.clip_grad,
        bf16=compute.bf16,
        params_dtype=torch.bfloat16 if compute.bf16 else torch.float32,
        use_distributed_optimizer=distributed,
        fp8_recipe=compute.fp8_recipe if compute.fp8_format else None,
    )
    optimizer = get_megatron_optimizer(options, chunks, use_gloo_process_groups=False)
    find_float32_weights_first(optimizer)
    for part in torch_optimizers(optimizer):
        if isinstance(part, torch.optim.AdamW):
            # One pass over memory in place of ten; Megatron's own choice where it has one is fused.
            for group in part.param_groups:
                group["fused"] = True
    return optimizer


def gradient_norm(optimizer: MegatronOptimizer) -> float:
    """Prepare all gradients of the model for an update, and return their norm.

    optimizer: from ``build_optimizer``.
    """
    optimizer.prepare_grads()
    return float(optimizer.get_grad_norm())


def clip_and_update(optimizer: MegatronOptimizer, grad_norm: float) -> None:
    """Update the weights by the gradients that ``gradient_norm`` prepared.

    Megatron's own ``step`` would prepare them and take their norm once more.
    """
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        parameters = [] if part.is_stub_optimizer else part.get_parameters()
        if parameters and part.config.clip_grad > 0.0:
            clip_grad_by_total_norm_fp32(
                parameters, max_norm=part.config.clip_grad, total_norm=grad_norm
            )
    optimizer.step_with_ready_grads()


def has_moments(optimizer: MegatronOptimizer) -> bool:
    """Return whether the optimizer took a step since it was made or forgot."""
    return any(part.state for part in torch_optimizers(optimizer))


def forget_moments(optimizer: MegatronOptimizer) -> None:
    """Let the next step be like the first. The float32 main parameters stay as they are."""
    for part in torch_optimizers(optimizer):
        part.state.clear()
        for group in part.param_groups:
            group.pop("step", None)  # Transformer Engine's optimizer counts there.


def torch_optimizers(optimizer: MegatronOptimizer) -> list[torch.optim.Optimizer]:
    """Return the optimizers inside Megatron's wrappers; a rank may have parameters for none."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part.optimizer for part in parts if part.optimizer is not None]


class Schedule:
    """Warm-up, then constant or cosine, counted from the beginning of a stage.

    The weight decay of every parameter group is set here too, at each step.
    """

    def __init__(
        self, optimizer: MegatronOptimizer, config: OptimizerConfig, lr: float, total_steps: int
    ) -> None:
        self._optimizer = optimizer
        self._config = config
        self._lr = lr
        self._total_steps = total_steps
        self._scheduler = self._at(0)

    def step(self) -> float:
        """Set the rate for the coming optimizer step and return it."""
        self._scheduler.step(1)
        return self.lr

    @property
    def lr(self) -> float:
        """The rate that is set."""
        return self._optimizer.param_groups[0]["lr"]

    @property
    def num_steps(self) -> int:
        """Optimizer steps of this stage so far, without those that were skipped."""
        return self._scheduler.num_steps

    def resume(self, num_steps: int) -> None:
        """Continue after this many steps."""
        self._scheduler = self._at(num_steps)

    def _at(self, num_steps: int) -> OptimizerParamScheduler:
        config = self._config
        min_lr = min(config.min_lr, self._lr)
        for group in self._optimizer.param_groups:
            group["max_lr"], group["min_lr"] = self._lr, min_lr
        scheduler = OptimizerParamScheduler(
            self._optimizer,
            init_lr=0.0,
            max_lr=self._lr,
            min_lr=min_lr,
            lr_warmup_steps=config.lr_warmup_steps,
            lr_decay_steps=max(self._total_steps, config.lr_warmup_steps + 1),
            lr_decay_style=config.lr_decay_style,
            start_wd=config.weight_decay,
            end_wd=config.weight_decay,
            wd_incr_steps=0,
            wd_incr_style="constant",
        )
        scheduler.step(num_steps)
        return scheduler
