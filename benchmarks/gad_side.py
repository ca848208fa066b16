"""Steps of the adversarial stage, one for each line on standard input; see ``against_trl``.

Arguments: folder of the game, rows of a microbatch.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from megatron_gad.cpu_seam import install_if_needed

install_if_needed()

# isort: split
from benchmarks.game import KL_COEF, LEARNING_RATE, Game, read_game
from megatron_gad.config.command_line import load_config
from megatron_gad.models.families import load_hf_config
from megatron_gad.planning.shapes import shape_from_config
from megatron_gad.planning.time import row_flops
from megatron_gad.planning.work import Lengths
from megatron_gad.stages.begin import begin_stage, open_run
from megatron_gad.training.parallel import initialize, shut_down

PRODUCT_SIZE, PRODUCTS = 1024, 5
PHASES = ("student", "discriminator", "rollout", "swap")


def make_flags(folder: Path, game: Game, rows: int) -> list[str]:
    """Return the command line of the game's run."""
    options = {
        "stages": "adversarial",
        "save": folder / "run",
        "micro-batch-size": rows,
        "student.path": folder / "model",
        "student.lr": LEARNING_RATE,
        "discriminator.lr": LEARNING_RATE,
        "data.path": folder / "train.jsonl",
        "data.max-prompt-tokens": game.prompt_tokens,
        "data.max-response-tokens": game.response_tokens,
        "adversarial.prompts-per-step": game.prompts,
        "adversarial.group-size": game.rollouts,
        "adversarial.extra-discriminator-steps": 0,
        "gad.kl-coef": KL_COEF,
        "rollout.engine": "embedded",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [*words, "--no-tensorboard"]


def needed_flops(folder: Path, game: Game) -> float:
    """Return the operations of a step's training with every prompt read once.

    Forward and backward of both models, and a forward pass of the reference; of whole layers,
    though the last one is computed for the tokens that are read.
    """
    shape = shape_from_config(load_hf_config(folder / "model").to_dict())
    prompt, response = game.prompt_tokens, game.response_tokens
    lengths = Lengths(prompt, response, prompt, response)
    student = row_flops(shape, lengths, game.rollouts, is_scorer=True)
    student += 2 * game.vocab * game.hidden * response
    discriminator = row_flops(shape, lengths, 1 + game.rollouts, is_scorer=True)
    return 4 * game.num_rows * student + 3 * (game.num_rows + game.prompts) * discriminator


def product_speed() -> float:
    """Return the operations a second of a large product in float32, by the fastest of a few."""
    factors = torch.randn(2, PRODUCT_SIZE, PRODUCT_SIZE)
    seconds = []
    for _ in range(PRODUCTS):
        start = time.perf_counter()
        torch.mm(factors[0], factors[1])
        seconds.append(time.perf_counter() - start)
    return 2 * PRODUCT_SIZE**3 / min(seconds)


def main() -> None:
    """Build the run, and take a step whenever one is asked for."""
    folder, rows = Path(sys.argv[1]), int(sys.argv[2])
    game, report = read_game(folder), sys.stdout
    sys.stdout = sys.stderr
    config, _ = load_config(make_flags(folder, game, rows))
    run = open_run(config, initialize(config.parallel, config.seed))
    stage = begin_stage(run)
    flops = needed_flops(folder, game)
    print("ready", file=report, flush=True)
    for _ in sys.stdin:
        speed = product_speed()
        start = time.perf_counter()
        result = stage.step(run)
        seconds = time.perf_counter() - start
        run.progress.count_step(stage.settings.num_prompts)
        found: dict[str, Any] = {"seconds": seconds, "product_speed": speed}
        metrics = result.metrics | run.turn.take_metrics()
        found["phases"] = {phase: metrics.get(f"time/{phase}_s", 0.0) for phase in PHASES}
        training = found["phases"]["student"] + found["phases"]["discriminator"]
        found["training_speed"] = flops / training
        found["tokens"] = metrics["tokens/trained"]
        found["response_tokens"] = metrics["response/length_mean"]
        print(json.dumps(found), file=report, flush=True)
    run.close()
    shut_down()


if __name__ == "__main__":
    main()
