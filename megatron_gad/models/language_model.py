"""A Megatron GPT model that leaves its output layer to whoever reads it."""

from typing import Any

from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor


class LanguageModel(GPTModel):
    """GPTModel whose last stage can return hidden states in place of the logits of all tokens.

    Logits are by far the largest tensor of a step, and most of them are never asked for. Hidden
    states let the reader apply ``output_weight`` to the tokens it wants, as few at a time as it
    likes.

    Args:
        returns_logits: [B, T, V / TP] of all tokens, as GPTModel does; else hidden states
            [B, T, H], the same on every tensor parallel rank, which expect the same of their
            gradients.
    """

    real_vocab_size: int

    def __init__(self, *, returns_logits: bool, **gpt_arguments: Any) -> None:
        super().__init__(**gpt_arguments)
        self._returns_logits = returns_logits

    def output_weight(self) -> Tensor:
        """Return this rank's rows of the output layer, [V / TP, H]; the last stage has them."""
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        weight: Any = self.output_layer.weight
        return weight

    def _postprocess(self, hidden_states: Tensor, *args: Any, **others: Any) -> Tensor:
        """Take the decoder's [T, B, H], or [T / TP, B, H] under sequence parallelism."""
        if self._returns_logits or not self.post_process:
            return super()._postprocess(hidden_states, *args, **others)
        if self.config.sequence_parallel:
            hidden_states = gather_from_sequence_parallel_region(
                hidden_states, tensor_parallel_output_grad=False, group=self.pg_collection.tp
            )
        return hidden_states.transpose(0, 1)
