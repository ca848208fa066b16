"""The oracle's two models in plain transformers, and how they learn."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# A setting by its name on the command line, without the dashes: {"gad.kl-coef": 0.3}.
Options = Mapping[str, Any]
Row = tuple[list[int], list[int]]  # prompt ids, response ids


@dataclass(frozen=True)
class Number:
    """A result. scale: the size that an error is relative to, where a sum may be near 0."""

    value: float
    scale: float


def plain(value: Tensor) -> Number:
    number = float(value.detach())
    return Number(number, abs(number))


class Learner:
    """AdamW on one model, with its learning-rate schedule and the clip of the gradient norm."""

    def __init__(self, named: Mapping[str, torch.nn.Parameter], options: Options) -> None:
        self.named = named
        self._options = options
        self.forget()

    def forget(self) -> None:
        """Begin with new moments."""
        values = self.named.values()
        groups = [
            {
                "params": [p for p in values if p.dim() > 1],
                "weight_decay": self._options["weight-decay"],
            },
            {"params": [p for p in values if p.dim() == 1], "weight_decay": 0.0},
        ]
        betas = (self._options["adam-beta1"], self._options["adam-beta2"])
        self._adamw = torch.optim.AdamW(groups, betas=betas)

    def begin(self, lr: float, num_steps: int, resets: bool) -> None:
        """Begin a stage in which the model takes so many steps."""
        self._lr, self._num_steps, self._step = lr, num_steps, 0
        if resets:
            self.forget()

    def learn(self, loss: Tensor) -> dict[str, Number]:
        """Take a step down the gradient; returns its norm and the rate."""
        self._adamw.zero_grad()
        loss.backward()
        gradients = [p.grad for p in self.named.values() if p.grad is not None]
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        clip = self._options["clip-grad"]
        if clip and norm > clip:
            for gradient in gradients:
                gradient.mul_(clip / norm)
        self._step += 1
        for group in self._adamw.param_groups:
            group["lr"] = self._rate()
        self._adamw.step()
        return {"grad_norm": Number(norm, norm), "lr": Number(self._rate(), self._lr)}

    def _rate(self) -> float:
        """Linear from 0 through the warm-up; then constant, or a cosine to min-lr at the end."""
        warmup, lowest = self._options["lr-warmup-steps"], min(self._options["min-lr"], self._lr)
        if self._step <= warmup:
            return self._lr * self._step / warmup
        if self._options["lr-decay-style"] == "constant":
            return self._lr
        part = (self._step - warmup) / max(self._num_steps - warmup, 1)
        return lowest + (self._lr - lowest) * (1 + math.cos(math.pi * min(part, 1.0))) / 2


class Scorer:
    """A network with a scalar head."""

    def __init__(self, network: Any, options: Options) -> None:
        self._network = network
        self._kind = options["discriminator.score"]
        self._values: dict[tuple[int, ...], Tensor] = {}
        drawn = torch.Generator().manual_seed(options["seed"])
        head = torch.randn(1, network.config.hidden_size, generator=drawn)
        self.head = torch.nn.Parameter(head * options["discriminator.head-std"])
        network_weights = {f"model.{n}": p for n, p in network.named_parameters()}
        self.named: dict[str, torch.nn.Parameter] = network_weights | {"score.weight": self.head}

    def __call__(self, rows: Sequence[Row]) -> Tensor:
        """Return a score per row, [R]."""
        hidden = self._network(_padded(rows)).last_hidden_state
        values = hidden @ self.head[0]
        scores = []
        for of_tokens, (prompt, ids) in zip(values, rows, strict=True):
            end = len(prompt) + len(ids)
            of_response = of_tokens[len(prompt) : end]
            self._values[(*prompt, *ids)] = of_response.detach()
            kinds = {
                "last_token": of_tokens[end - 1],
                "sum": of_response.sum(),
                "mean": of_response.mean(),
            }
            scores.append(kinds[self._kind])
        return torch.stack(scores)

    def values(self, row: Row) -> Tensor:
        """Return what every token of a response was worth when its row was scored last."""
        prompt, ids = row
        return self._values[(*prompt, *ids)]


def load(kind: Any, folder: Path) -> Any:
    """Return a model of transformers from its folder."""
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    # Else transformers gives this row no gradient.
    model.get_input_embeddings().padding_idx = None
    return model


def response_logprobs(
    model: Any, rows: Sequence[Row], temperature: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Return of every row the logprobs of its response tokens, and the entropies they come from."""
    taken, entropies = [], []
    tables = response_tables(model, rows, temperature)
    for table, (_, ids) in zip(tables, rows, strict=True):
        taken.append(table.gather(1, torch.tensor(ids)[:, None])[:, 0])
        entropies.append(-(table.exp() * table).sum(dim=1).detach())
    return taken, entropies


def response_tables(model: Any, rows: Sequence[Row], temperature: float) -> list[Tensor]:
    """Return of every row the log-probabilities of all tokens at each response token, [T, V]."""
    tables = torch.log_softmax(model(_padded(rows)).logits / temperature, dim=-1)
    return [
        table[len(prompt) - 1 : len(prompt) + len(ids) - 1]
        for table, (prompt, ids) in zip(tables, rows, strict=True)
    ]


def _padded(rows: Sequence[Row]) -> Tensor:
    """Return [R, T] int64. No token sees what comes after it, so that padding needs no mask."""
    width = max(len(prompt) + len(ids) for prompt, ids in rows)
    return torch.tensor([[*p, *ids, *[0] * (width - len(p) - len(ids))] for p, ids in rows])
