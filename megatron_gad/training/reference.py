"""The reference: the student at some earlier point, as a host copy swapped into its buffers."""

from collections.abc import Iterator

from torch import Tensor

from megatron_gad.training.trainer import Trainer
from megatron_gad.types import Batch


class Reference:
    """Frozen parameters that borrow the student's modules for a forward pass."""

    def __init__(self, student: Trainer, snapshot: list[Tensor], version: int = -1) -> None:
        """version: of the student's weights that the snapshot is of."""
        self._student = student
        self.snapshot = snapshot
        self.version = version

    def logprobs(self, batch: Batch, temperature: float) -> Tensor:
        """Return the reference's [B, T] float32 log-probabilities of response tokens."""
        with self._student.lent(self.snapshot):
            return self._student.logprobs(batch, temperature)

    def hf_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the reference's full tensors under their Hugging Face names."""
        with self._student.lent(self.snapshot):
            yield from self._student.hf_weights()
