"""Where a trainer's memory is: on the device, or in host buffers while others need the device.

Whole storages move, not tensors: a storage is emptied and filled again in place, so that every
view of it, such as the pieces of Megatron's flat buffers, is right again without being told.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor, UntypedStorage

from megatron_gad.training.optimizer import torch_optimizers

Tensors = Callable[[], Iterable[Tensor]]


def to_host(tensor: Tensor) -> Tensor:
    """Return a copy in host memory, pinned where it comes from a GPU."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return host.copy_(tensor.detach())


class HostCopy:
    """A set of storages with a host buffer for each, made when it first leaves.

    A buffer that still equals its storage is not written again: frozen bytes are copied out once.
    """

    def __init__(self, tensors: Tensors, device: torch.device) -> None:
        """Tensors: gives what belongs to the set now; those on other devices are left alone."""
        self._tensors = tensors
        self._device = device
        self._hosts: dict[int, tuple[UntypedStorage, Tensor]] = {}
        self._is_current = False
        self.copied_bytes = 0

    @property
    def storages(self) -> dict[int, UntypedStorage]:
        """The set's storages by identity."""
        return storages(self._tensors(), self._device)

    @property
    def device_bytes(self) -> int:
        """Bytes that the set takes on the device."""
        return sum(storage.nbytes() for storage in self.storages.values())

    def note_change(self) -> None:
        """The device's values are no longer the host's."""
        self._is_current = False

    def copy_out(self) -> None:
        """Make the host buffers equal to what is on the device, where they are not."""
        found = self.storages
        hosts = {}
        for key, storage in found.items():
            kept = self._hosts.get(key)
            if storage.nbytes() == 0:  # away, or without a shard of anything
                hosts |= {key: kept} if kept else {}
                continue
            if kept is None or not self._is_current:
                host = kept[1] if kept else _host_buffer(storage)
                host.copy_(as_bytes(storage), non_blocking=True)
                self.copied_bytes += storage.nbytes()
                kept = storage, host
            hosts[key] = kept
        self._hosts = hosts
        self._is_current = True
        self._wait()

    def leave(self) -> None:
        """Free the device's memory."""
        self.copy_out()
        for storage, _ in self._hosts.values():
            storage.resize_(0)

    def allocate(self) -> None:
        """Take device memory again, for values that are about to be written."""
        for storage, host in self._hosts.values():
            if storage.nbytes() == 0:
                storage.resize_(host.numel())

    def come_back(self) -> None:
        """Bring what is away back to the device."""
        wanted = self.storages
        self._hosts = {key: pair for key, pair in self._hosts.items() if key in wanted}
        for storage, host in self._hosts.values():
            if storage.nbytes() == 0:
                storage.resize_(host.numel())
                self._copy_in(storage, host)
        self._wait()

    @torch.no_grad()
    def fill(self, tensors: Iterable[Tensor], values: Iterable[Tensor]) -> None:
        """Write values from the host into some of the set's tensors; the host copies stay."""
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value, non_blocking=True)
            self.copied_bytes += value.numel() * value.element_size()

    def copy_in(self) -> None:
        """Write the host's values, of the last ``copy_out``, over the device's."""
        for storage, host in self._hosts.values():
            self._copy_in(storage, host)
        self._is_current = True
        self._wait()

    def _copy_in(self, storage: UntypedStorage, host: Tensor) -> None:
        as_bytes(storage).copy_(host, non_blocking=True)
        self.copied_bytes += storage.nbytes()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


@dataclass(frozen=True)
class DeviceBytes:
    """What one trainer holds on the device."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """Return all of it."""
        return self.weights + self.gradients + self.optimizer


class TrainerMemory:
    """Weights, gradients and optimizer of one trainer, each on the device or not."""

    def __init__(
        self,
        modules: Sequence[torch.nn.Module],
        optimizer: MegatronOptimizer,
        device: torch.device,
    ) -> None:
        self._modules = modules
        self._optimizer = optimizer
        self._device = device
        self.weights = HostCopy(self._weights, device)
        self._states = HostCopy(self.optimizer_states, device)
        self._gradient_sizes: dict[int, int] = {}

    @property
    def copied_bytes(self) -> int:
        """Bytes copied between device and host so far, in either direction."""
        return self.weights.copied_bytes + self._states.copied_bytes

    def sleep(self, keep_weights: bool = False) -> None:
        """Leave the device, or all but the weights."""
        self.release_gradients()
        self._states.leave()
        if keep_weights:
            self.weights.come_back()
        else:
            self.weights.leave()

    def wake_weights(self) -> None:
        """Bring the weights back."""
        self.weights.come_back()

    def wake_states(self) -> None:
        """Bring the weights and the optimizer states back."""
        self.weights.come_back()
        self._states.come_back()

    def wake(self) -> None:
        """Bring everything back; gradients are zero."""
        self.wake_states()
        for key, storage in self._gradients().items():
            if storage.nbytes() == 0:
                storage.resize_(self._gradient_sizes.pop(key))
                as_bytes(storage).zero_()

    def note_change(self) -> None:
        """Weights and optimizer are about to be written."""
        self.weights.note_change()
        self._states.note_change()

    def release_gradients(self) -> None:
        """Free the gradient buffers: between two optimizer steps they hold nothing of worth."""
        self._optimizer.zero_grad()
        for key, storage in self._gradients().items():
            if storage.nbytes():
                self._gradient_sizes[key] = storage.nbytes()
                storage.resize_(0)

    def device_bytes(self) -> DeviceBytes:
        """Measure what is on the device now."""
        gradients = sum(storage.nbytes() for storage in self._gradients().values())
        return DeviceBytes(self.weights.device_bytes, gradients, self._states.device_bytes)

    def optimizer_states(self) -> Iterator[Tensor]:
        """Yield moments and float32 main parameters; without these the weights are their own."""
        own = self.weights.storages
        for part in torch_optimizers(self._optimizer):
            groups = [group["params"] for group in part.param_groups]
            states = [value for state in part.state.values() for value in state.values()]
            for value in (*(p for group in groups for p in group), *states):
                if isinstance(value, Tensor) and value.untyped_storage()._cdata not in own:
                    yield value.detach()

    def _parameters(self) -> Iterator[Any]:
        return (parameter for module in self._modules for parameter in module.parameters())

    def _weights(self) -> Iterator[Tensor]:
        return (parameter.detach() for parameter in self._parameters())

    def _gradients(self) -> dict[int, UntypedStorage]:
        own = self.weights.storages
        buffers = storages((p.main_grad for p in self._parameters()), self._device)
        return {key: value for key, value in buffers.items() if key not in own}


def storages(tensors: Iterable[Tensor], device: torch.device) -> dict[int, UntypedStorage]:
    """Return the storages behind tensors, each once, of those on a device of this kind."""
    held = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == device.type]
    return {storage._cdata: storage for storage in held}


def as_bytes(storage: UntypedStorage) -> Tensor:
    """Return a storage as a uint8 [bytes] tensor."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _host_buffer(storage: UntypedStorage) -> Tensor:
    is_cuda = storage.device.type == "cuda"
    return torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=is_cuda)
