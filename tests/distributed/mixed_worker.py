"""Trains pairs in mixed layouts and moves their checkpoints; started on four ranks.

``main`` takes the folder with the Hugging Face folders "qwen2-tied" and "tokenizer", and with
"rollouts" to four prompts; the results go into it.
"""

from pathlib import Path

import torch
from torch.distributed import barrier, destroy_process_group

from megatron_gad.data.chat import ChatCodec
from megatron_gad.engines.replay import ReplayEngine
from megatron_gad.runtime.sampler import Request, Sampler
from megatron_gad.training.checkpoint import (
    Residents,
    load_model,
    save_checkpoint,
)
from megatron_gad.training.checkpoint_files import (
    iteration_folder,
)
from megatron_gad.training.exchange import move
from megatron_gad.training.parallel import Parallel, add_layout, initialize
from tests.distributed.mixed_layouts import COSTS, LAYOUTS, PROMPTS, SAMPLING, Learned, Pair
from tests.distributed.workers import drop_groups, save

# Six items over as many data ranks, of which one may have none.
COUNTS = {1: [6], 2: [5, 1], 4: [3, 1, 2, 0]}


def start(name: str) -> tuple[Parallel, Parallel]:
    """Make the process groups of both layouts in place of those before."""
    drop_groups()
    student, discriminator = LAYOUTS[name]
    return initialize(student, seed=0), add_layout(discriminator, seed=0)


def exchanges(places: tuple[Parallel, Parallel], counts: list[int]) -> list[dict]:
    """Move items of which each data rank has another number, and their rows back."""
    source, target = places
    first = sum(counts[: source.data_rank])
    own = list(range(first, first + counts[source.data_rank]))
    moved = move(own, COSTS.__getitem__, source, target)
    # Of every item two rows with its number are computed.
    rows = torch.tensor([[item, twice] for item in moved.items for twice in (0, 1)])
    mine = {
        "source": source.data_rank,
        "target": target.data_rank,
        "had": own,
        "moved": moved.items,
        "back": moved.back(rows).tolist(),
    }
    return source.gather_over_world(mine)


def record(folder: Path, name: str, place: Parallel) -> None:
    """Sample what was recorded, and record it again."""
    engine = ReplayEngine(folder) if place.is_engine_rank else None
    codec = ChatCodec.from_folder(folder / "tokenizer", 64, 64)
    sampler = Sampler(engine, codec, place, folder / "recorded" / name)
    sampler.sample([Request(place.share(PROMPTS), SAMPLING)])


def run(folder: Path) -> dict:
    """Return what came out of every layout, and out of checkpoints moved between them."""
    results: dict = {"steps": {}, "exchanges": {}, "tokens": {}}
    codec = ChatCodec.from_folder(folder / "tokenizer", 64, 64)
    for name, layouts in LAYOUTS.items():
        places = start(name)
        results["exchanges"][name] = exchanges(places, COUNTS[places[0].data_size])
        record(folder, name, places[0])
        pair = Pair(folder / "qwen2-tied", layouts, places)
        results["tokens"][name] = pair.tokens(codec)
        results["steps"][name] = [pair.step(), pair.step()]
        if name == "tp2, tp1":
            models = {"student": pair.student, "discriminator": pair.discriminator}
            save_checkpoint(folder / "run", 2, Residents(models), {}, places[0], 0)
            results["after the checkpoint"] = pair.step()
    results["resumed"] = {name: resumed(folder, name) for name in ("tp2, tp1", "dp4, tp2-pp2")}
    return results


def resumed(folder: Path, name: str) -> Learned:
    """Take a step on from the checkpoint."""
    pair = Pair(folder / "qwen2-tied", LAYOUTS[name], start(name))
    source = iteration_folder(folder / "run", 2)
    load_model(source / "student", pair.student)
    load_model(source / "discriminator", pair.discriminator)
    return pair.step()


def main(folder: Path) -> None:
    """Run everything."""
    torch.distributed.init_process_group("gloo")
    results = run(folder)
    save(folder / "results.pt", results)
    barrier()
    destroy_process_group()
