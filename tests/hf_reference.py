"""What training does to a model of transformers, written down plainly, to compare with."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from megatron_gad.types import Batch, LanguageOutput, Loss, PairBatch, ScorerOutput
from tests.tiny import hub_tensors
from tests.tiny_training import SEED

Parameters = dict[str, torch.nn.Parameter]


class HfStudent:
    """A language model of transformers; ``parameters`` by name."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder)
        self.parameters: Parameters = dict(self.model.named_parameters())

    def read(self, batch: Batch, temperature: float = 1.0) -> LanguageOutput:
        """Logprobs with gradient, and entropy, of response tokens."""
        logits = self.model(batch.tokens).logits[:, :-1] / temperature
        logp = torch.log_softmax(logits, dim=-1)
        taken = logp.gather(-1, batch.tokens[:, 1:, None]).squeeze(-1)
        entropy = -(logp.exp() * logp).sum(-1).detach()
        mask = batch.response_mask[:, 1:]
        aligned = [
            torch.nn.functional.pad(torch.where(mask, x, 0.0), (1, 0)) for x in (taken, entropy)
        ]
        return LanguageOutput(*aligned)


class HfScorer:
    """The network of a language model and a scalar head drawn as the package draws it."""

    def __init__(self, folder: Path, kind: str = "last_token", head_std: float = 0.3) -> None:
        self.model = AutoModel.from_pretrained(folder)
        self.kind = kind
        drawn = torch.randn(
            1, self.model.config.hidden_size, generator=torch.Generator().manual_seed(SEED)
        )
        head = torch.nn.Parameter(drawn * head_std)
        named = {f"model.{name}": value for name, value in self.model.named_parameters()}
        self.parameters: Parameters = named | {"score.weight": head}

    def read(self, batch: PairBatch, temperature: float = 1.0) -> ScorerOutput:
        """Scores, [R]; row by row, without padding."""
        scores = []
        for values, response in self._values(batch):
            own = values[response]
            # The last token of a row without response is its prompt's.
            kinds = {"last_token": values[-1], "sum": own.sum(), "mean": own.mean()}
            scores.append(kinds[self.kind])
        return ScorerOutput(torch.stack(scores))

    def response_values(self, batch: PairBatch) -> list[torch.Tensor]:
        """What the head makes of every response token, of every row."""
        return [values[response] for values, response in self._values(batch)]

    def _values(self, batch: PairBatch) -> Iterator[tuple[Tensor, Tensor]]:
        """What the head makes of the tokens of every row, and which of them are its response."""
        for tokens, length, mask in zip(
            batch.tokens, batch.lengths, batch.response_mask, strict=True
        ):
            hidden = self.model(tokens[None, :length]).last_hidden_state[0]
            yield hidden @ self.parameters["score.weight"][0], mask[:length]


def reference_gradients(
    reference: HfStudent | HfScorer,
    batch: Batch | PairBatch,
    loss: Callable[..., Loss],
    temperature: float = 1.0,
) -> tuple[float, dict[str, Tensor]]:
    """The mean loss of a whole batch, and the gradient of every weight; left in the parameters."""
    for parameter in reference.parameters.values():
        parameter.grad = None
    result = loss(reference.read(batch, temperature), batch)  # pyright: ignore[reportArgumentType]
    mean = result.total / result.count
    mean.backward()
    gradients = {name: _gradient(p) for name, p in reference.parameters.items()}
    return mean.item(), hub_tensors(reference.model, gradients)


def adamw(reference: HfStudent | HfScorer, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    values = reference.parameters.values()
    groups = [
        {"params": [p for p in values if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in values if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr)


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
