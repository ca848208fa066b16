"""The seed of one response."""

from megatron_gad.engines.base import request_seed


def test_every_coordinate_changes_the_seed():
    seeds = {
        request_seed(seed, prompt, sample)
        for seed in range(5)
        for prompt in range(20)
        for sample in range(8)
    }
    assert len(seeds) == 5 * 20 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_is_the_same_in_every_process_and_version():
    assert request_seed(0, 0, 0) == 759540517790923586
    assert request_seed(1, 23, 4) == 6960290602034214279
