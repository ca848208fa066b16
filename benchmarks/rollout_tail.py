"""What the longest responses of a step cost, and what over-sampling would make of them.

    python -m benchmarks.rollout_tail [--seeds 30]

A simulation: every place of every server decodes a token in each iteration, and a place that is
done takes the next request. Lengths are log-normal, half of their spread a prompt's own. Time is
in iterations.
"""

import heapq
import math
import random
import statistics
from dataclasses import dataclass

import tyro

GROUP_SIZE, MEAN, CAP, SIGMA = 8, 400, 1536, 1.0
PROMPTS, STARTED, SERVERS = 256, 320, 8
Lengths = list[list[int]]


@dataclass(frozen=True)
class Arguments:
    """What is simulated. seeds: steps, of which means are printed. places: of all servers."""

    seeds: int = 30
    places: tuple[int, ...] = (256, 512, 2048)


def main() -> None:
    """Print a row for each number of places."""
    arguments = tyro.cli(Arguments, description=__doc__)
    print("| places | no tail | one queue | a queue a server | over-sampled | its mean length |")
    print("|" + "---|" * 6)
    for places in arguments.places:
        steps = [simulate(draw(random.Random(seed)), places) for seed in range(arguments.seeds)]
        *times, bias = (statistics.mean(each) for each in zip(*steps, strict=True))
        shown = " | ".join(f"{time:,.0f}" for time in times)
        print(f"| {places:,} | {shown} | {bias - 1:+.0%} |")


def draw(rng: random.Random) -> Lengths:
    """Return the lengths of the responses of every group that is started."""
    spread, groups = SIGMA / math.sqrt(2), []
    for _ in range(STARTED):
        center = math.log(MEAN) - SIGMA**2 / 2 + rng.gauss(0, spread)
        drawn = (math.exp(center + rng.gauss(0, spread)) for _ in range(GROUP_SIZE))
        groups.append([max(1, min(CAP, int(length))) for length in drawn])
    return groups


def simulate(groups: Lengths, places: int) -> tuple[float, float, float, float, float]:
    """Return the end of a step without a tail, with one queue, with one for each server, and with
    over-sampling; and the mean length of what over-sampling takes, of that of all groups."""
    own = groups[:PROMPTS]
    even = sum(map(sum, own)) / places
    share = PROMPTS // SERVERS
    parts = (own[first : first + share] for first in range(0, PROMPTS, share))
    apart = max(max(ends_of(part, places // SERVERS)) for part in parts)
    ends = ends_of(groups, places)
    taken = sorted(range(STARTED), key=ends.__getitem__)[:PROMPTS]
    means = [statistics.mean(group) for group in groups]
    bias = statistics.mean(means[number] for number in taken) / statistics.mean(means)
    return even, max(ends_of(own, places)), apart, ends[taken[-1]], bias


def ends_of(groups: Lengths, places: int) -> list[int]:
    """Return when each group is whole; requests take the first place that is free."""
    free, ends = [0] * places, []
    for group in groups:
        ends.append(0)
        for length in group:
            end = heapq.heappop(free) + length
            heapq.heappush(free, end)
            ends[-1] = max(ends[-1], end)
    return ends


if __name__ == "__main__":
    main()
