"""The engine protocol: what the run needs from anything that samples text."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Protocol

from torch import Tensor

from megatron_gad.config.run import RunConfig
from megatron_gad.types import FinishReason, Group, Prompt


@dataclass(frozen=True)
class SamplingConfig:
    """How responses are drawn.

    num_samples: rollouts per prompt.
    temperature: 0 means greedy.
    max_new_tokens: cap on response tokens, the end token included.
    stop_ids: token ids that end a response; the one sampled is kept as the last id.
    seed: with a prompt's index and the sample's number it fixes every draw of a response, so the
        result does not depend on which engine or batch served it.
    name: of this sampling in its run; rollouts are recorded and found again under it.
    """

    num_samples: int = 1
    temperature: float = 1.0
    max_new_tokens: int = 128
    stop_ids: tuple[int, ...] = ()
    seed: int = 0
    name: str = ""

    @classmethod
    def of_step(
        cls,
        config: RunConfig,
        iteration: int,
        num_samples: int,
        draw: int = 0,
        max_new_tokens: int | None = None,
    ) -> "SamplingConfig":
        """Sample in a step as the configuration says.

        draw: tells the samplings of one step apart. max_new_tokens: by default the configured cap.
        """
        return cls(
            num_samples=num_samples,
            temperature=config.rollout.temperature,
            max_new_tokens=max_new_tokens or config.data.max_response_tokens,
            seed=request_seed(config.seed, iteration, draw),
            name=f"step_{iteration + 1:07d}_{draw}",
        )


@dataclass(frozen=True)
class EngineWork:
    """What an engine has done.

    tokens: sampled ones. seconds: the time that it took.
    running, waiting: rows at work, and rows that waited for room, summed over ``moments``: steps of
        the embedded engine, seconds with servers.
    prompt_tokens: of the prompts of all responses.
    cached_tokens: those of them whose keys and values were there already.
    """

    tokens: float = 0.0
    seconds: float = 0.0
    running: float = 0.0
    waiting: float = 0.0
    moments: float = 0.0
    prompt_tokens: float = 0.0
    cached_tokens: float = 0.0

    def __add__(self, other: "EngineWork") -> "EngineWork":
        """Return both together."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return EngineWork(*(one + another for one, another in pairs))

    def sums(self) -> dict[str, tuple[float, float]]:
        """Return the metrics, each as sum and count."""
        return {
            "engine/tokens_per_s": (self.tokens, self.seconds),
            "engine/running_rows": (self.running, self.moments),
            "engine/waiting_rows": (self.waiting, self.moments),
            "engine/cache_hit_share": (self.cached_tokens, self.prompt_tokens),
        }


class Engine(Protocol):
    """Samples responses. Weights are swapped before every use, so waking is always loading."""

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take all weights by their Hugging Face names; leaves the engine awake, caches empty."""
        ...

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> list[Group]:
        """Sample ``sampling.num_samples`` responses for each prompt, in the order given."""
        ...

    def take_work(self) -> EngineWork:
        """Return what was done since the last call; all zero if nothing is known of it."""
        ...

    def held_weights(self) -> Iterable[tuple[str, Tensor]]:
        """Return what the engine can show of its weights, under their names; for diagnosis."""
        ...

    def sleep(self) -> None:
        """Give the device memory back; the next call is ``load_weights``."""
        ...

    def close(self) -> None:
        """Stop everything that the engine started."""
        ...


def request_seed(seed: int, prompt_index: int, sample: int) -> int:
    """Return the seed of one response, a 63-bit integer mixed from its three coordinates."""
    text = f"{seed}/{prompt_index}/{sample}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def finish_reason(
    ids: Sequence[int], stop_ids: Sequence[int], reported: FinishReason
) -> FinishReason:
    """Return "stop" for a response that ends in a stop id, else what was reported.

    A server that meets its last allowed token and a stop id at once may report the length; then
    the discriminator would read the response without its end token.
    """
    return "stop" if ids[-1] in stop_ids else reported
