"""How far the embedded engine and the trainer are apart in bfloat16, with equal and other weights.

Prints a Markdown table: the mean gap, and what ``mean_gap_bound`` allows. Four minutes on one core:

    python -m benchmarks.logprob_gap
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from megatron_gad.cpu_seam import install_if_needed

install_if_needed()

# isort: split
from megatron_gad.algorithms.policy import PolicyOptions, policy_loss
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.config.models import StudentConfig
from megatron_gad.data.batching import policy_batch
from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.embedded import EmbeddedEngine
from megatron_gad.models.families import load_hf_config
from megatron_gad.stages.agreement import BF16_ROUNDING, mean_gap_bound
from megatron_gad.training.parallel import initialize, shut_down
from megatron_gad.training.settings import TrainerSettings
from megatron_gad.training.trainer import Trainer
from megatron_gad.types import Batch, Prompt

VOCAB_SIZE, NUM_PROMPTS, GROUP_SIZE, NUM_TOKENS = 500, 16, 2, 32
# layers, width
SHAPES = ((2, 32), (4, 256), (8, 128))
# What the output layer is multiplied with: from nearly even distributions to sharp ones.
SCALES = (0.3, 1.0, 3.0, 10.0)
PERMUTED = ("model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight")
RATES = ((1e-5, 10), (1e-4, 10), (1e-3, 1), (1e-3, 10))


def make_folder(folder: Path, num_layers: int, width: int, scale: float) -> Path:
    """Write a random Qwen2 whose logits have a standard deviation of about ``scale``."""
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        initializer_range=width**-0.5,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    model.save_pretrained(folder)
    return folder


def sample(engine: EmbeddedEngine, seed: int) -> Batch:
    """Sample from the engine as it is."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(2, VOCAB_SIZE, (NUM_PROMPTS, 8), generator=generator).tolist()
    prompts = [Prompt(i, (), "", tuple(row), (1,)) for i, row in enumerate(rows)]
    sampling = SamplingConfig(GROUP_SIZE, 1.0, max_new_tokens=NUM_TOKENS, seed=seed)
    return policy_batch(engine.generate(prompts, sampling))


def measure(student: Trainer, batch: Batch) -> tuple[float, float]:
    """Return the mean gap and what is allowed, in nats."""
    assert batch.rollout_logprobs is not None
    mask = batch.response_mask
    engine = batch.rollout_logprobs[mask]
    gap = (student.logprobs(batch)[mask] - engine).abs().mean()
    spread = float(engine.std(correction=0))
    layers = student.hf_config.num_hidden_layers
    probability = float(engine.exp().mean())
    allowed = mean_gap_bound(BF16_ROUNDING, layers, spread, probability, len(engine))
    return float(gap), allowed


def cases(student: Trainer, engine: EmbeddedEngine) -> Iterator[tuple[str, Callable[[], Batch]]]:
    """Yield what is compared; the engine is brought into its state when the batch is asked for."""
    start = student.snapshot()
    fresh = dict(student.hf_weights())

    def permuted(name: str) -> Batch:
        order = torch.randperm(len(fresh[name]), generator=torch.Generator().manual_seed(1))
        engine.load_weights((fresh | {name: fresh[name][order]}).items(), 1)
        return sample(engine, seed=1)

    def stale(lr: float, num_updates: int) -> Batch:
        student.restore(start)
        student.begin_stage(lr, num_updates, reset_optimizer=True)
        engine.load_weights(fresh.items(), 1)
        loss = partial(policy_loss, options=PolicyOptions(kl_coef=0.0))
        for number in range(num_updates):
            batch = sample(engine, seed=2 + number)
            noise = torch.randn(len(batch.tokens), generator=torch.Generator().manual_seed(number))
            student.train(batch.with_advantages(noise), loss)
        return sample(engine, seed=1)

    yield "equal weights", lambda: (engine.load_weights(fresh.items(), 1), sample(engine, 1))[1]
    for name in PERMUTED:
        yield f"rows of {name} permuted", partial(permuted, name)
    for lr, num_updates in RATES:
        yield f"{num_updates} updates older, lr {lr:g}", partial(stale, lr, num_updates)


def main() -> None:
    """Print the table."""
    place = initialize(ParallelConfig(), seed=0)
    settings = TrainerSettings(ParallelConfig(), ComputeConfig(bf16=True), seed=0)
    write = sys.stdout.write
    write("| layers x width | logits times | engine | mean gap | allowed | |\n")
    write("|---|---|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as folder:
        for number, (layers, width) in enumerate(SHAPES):
            for scale in SCALES:
                path = make_folder(Path(folder) / f"{number}-{scale}", layers, width, scale)
                config = StudentConfig(lr=1e-6)
                student = Trainer.language_model(load_hf_config(path), config, place, settings)
                student.load_hf_weights(path)
                engine = EmbeddedEngine(path, "cpu", torch.bfloat16)
                for name, batch in cases(student, engine):
                    gap, allowed = measure(student, batch())
                    verdict = "refused" if gap > allowed else "passes"
                    write(
                        f"| {layers} x {width} | {scale:g} | {name} | {gap:.4f} | {allowed:.4f} "
                        f"| {verdict} |\n"
                    )
                    sys.stdout.flush()
    shut_down()


if __name__ == "__main__":
    main()
