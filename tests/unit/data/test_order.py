"""The order of rows: seeded, without repetition in an epoch, and resumable anywhere."""

import pytest

from megatron_gad.data.order import PromptOrder


def test_every_epoch_takes_each_row_once_in_an_order_of_its_own() -> None:
    order = PromptOrder(50, seed=3)
    epochs = [order.take(50) for _ in range(4)]
    assert all(sorted(rows) == list(range(50)) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 4


def test_the_order_does_not_depend_on_how_much_is_taken_at_once() -> None:
    whole = PromptOrder(7, seed=1).take(40)
    for size in (1, 3, 7, 20):
        order = PromptOrder(7, seed=1)
        pieces = [row for _ in range(40 // size + 1) for row in order.take(size)]
        assert pieces[:40] == whole
    assert PromptOrder(7, seed=2).take(40) != whole


def test_without_shuffling_the_order_is_that_of_the_file() -> None:
    order = PromptOrder(3, seed=9, shuffle=False)
    assert order.take(8) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert order.take(0) == []


def test_the_epoch_counts_rows_taken() -> None:
    order = PromptOrder(4, seed=0)
    seen = [order.epoch]
    for count in (1, 3, 2, 10):
        order.take(count)
        seen.append(order.epoch)
    assert seen == [0.0, 0.25, 1.0, 1.5, 4.0]


@pytest.mark.parametrize("taken", [0, 3, 10, 11, 25, 30])
def test_a_resumed_order_goes_on_as_if_never_interrupted(taken: int) -> None:
    whole = PromptOrder(10, seed=5)
    whole.take(taken)
    state = whole.state_dict()
    assert all(type(value) is int for value in state.values())
    resumed = PromptOrder(10, seed=5)
    resumed.take(4)  # a position of its own must not matter
    resumed.load_state_dict(state)
    assert resumed.epoch == whole.epoch
    assert resumed.take(33) == whole.take(33)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (PromptOrder(11, seed=5), "num_rows = 10, this run has 11"),
        (PromptOrder(10, seed=6), "seed = 5, this run has 6"),
        (PromptOrder(10, seed=5, shuffle=False), "shuffle = 1, this run has 0"),
    ],
)
def test_a_state_of_another_order_is_refused(other: PromptOrder, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(PromptOrder(10, seed=5).state_dict())


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="num_rows = 0"):
        PromptOrder(0, seed=0)
