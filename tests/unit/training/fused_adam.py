"""The interface of Transformer Engine's Adam that Megatron uses, with AdamW in plain torch behind.

After transformer_engine/pytorch/optimizers/fused_adam.py of version 2.11, which needs a GPU.
"""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

STATES = ("exp_avg", "exp_avg_sq", "master_param")


class FusedAdam(torch.optim.Optimizer):
    """Holds moments in types of one's choice, main weights too, and reads decoupled gradients."""

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        adam_w_mode: bool,
        exp_avg_dtype: torch.dtype,
        exp_avg_sq_dtype: torch.dtype,
        master_weights: bool,
        use_decoupled_grad: bool,
        master_weight_dtype: torch.dtype,
        store_param_remainders: bool = True,
    ) -> None:
        assert adam_w_mode and master_weights and use_decoupled_grad
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        dtypes = (exp_avg_dtype, exp_avg_sq_dtype, master_weight_dtype)
        self.name_to_dtype_map: dict[str, torch.dtype] = dict(zip(STATES, dtypes, strict=True))
        self.store_param_remainders = store_param_remainders

    def initialize_state(self, param: Tensor, store_param_remainders: bool) -> None:
        """Begin at moments of 0 and the weights themselves."""
        assert not store_param_remainders, "only read by a kernel"
        for name, start in zip(STATES, (0.0, 0.0, param.detach().float()), strict=True):
            self.set_scaled_state(param, name, torch.zeros(param.shape) + start)

    def get_unscaled_state(self, param: Tensor, state_name: str) -> Tensor:
        """A state as float32."""
        return self.state[param][state_name].float()

    def set_scaled_state(self, param: Tensor, state_name: str, unscaled_state: Tensor) -> None:
        """Write a float32 state in its own type."""
        assert unscaled_state.dtype == torch.float32
        dtype = self.name_to_dtype_map[state_name]
        held = self.state[param].setdefault(state_name, torch.empty(param.shape, dtype=dtype))
        held.copy_(unscaled_state)
        if dtype == torch.float16:
            unscaled_state.fill_(torch.nan)  # it is scaled in place

    def state_dict(self) -> dict[str, Any]:
        """All states as float32."""
        states = super().state_dict()
        for key, state in states["state"].items():
            states["state"][key] = {name: value.float() for name, value in state.items()}
        return states

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the states in their own types."""
        super().load_state_dict(state_dict)
        loaded, self.state = dict(self.state), type(self.state)(dict)
        for param, state in loaded.items():
            for name, value in state.items():
                self.set_scaled_state(param, name, value.float())

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """AdamW, from main weights where a weight is not float32 itself."""
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for param in group["params"]:
                if not self.state[param]:
                    self.initialize_state(param, self.store_param_remainders)
                self._update(param, group)

    def _update(self, param: Any, group: dict[str, Any]) -> None:
        """One step of one weight. Loshchilov and Hutter, arXiv:1711.05101."""
        beta1, beta2 = group["betas"]
        first, second, main = (self.get_unscaled_state(param, name) for name in STATES)
        if param.dtype == torch.float32:
            main = param
        first.lerp_(param.decoupled_grad, 1 - beta1)
        second.lerp_(param.decoupled_grad**2, 1 - beta2)
        root = (second / (1 - beta2 ** group["step"])).sqrt() + group["eps"]
        main.mul_(1 - group["lr"] * group["weight_decay"])
        main.sub_(group["lr"] * first / (1 - beta1 ** group["step"]) / root)
        param.copy_(main)
        names = STATES if main is not param else STATES[:2]
        for name, value in zip(names, (first, second, main), strict=False):
            self.set_scaled_state(param, name, value)


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """Let megatron-core find this one."""
    names = ("transformer_engine", "transformer_engine.pytorch")
    for name in names:
        patch.setitem(sys.modules, name, ModuleType(name))
    optimizers: Any = ModuleType("transformer_engine.pytorch.optimizers")
    optimizers.FusedAdam = FusedAdam
    patch.setitem(sys.modules, optimizers.__name__, optimizers)
    for module in ("megatron.core.optimizer", "megatron.core.optimizer.distrib_optimizer"):
        patch.setattr(f"{module}.Adam", FusedAdam)
    patch.setattr("megatron.core.optimizer.USING_PYTORCH_OPTIMIZER", False)
    for module in ("megatron.core.optimizer", "megatron.core.optimizer.optimizer_config"):
        patch.setattr(f"{module}.is_te_min_version", lambda _: True)
    for fact in ("HAVE_APEX_OR_TE", "USING_TE_OPTIMIZER"):
        patch.setattr(f"megatron.core.optimizer.distrib_optimizer.{fact}", True)
