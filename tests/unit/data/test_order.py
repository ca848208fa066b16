"""The order of rows: seeded, without repetition in an epoch, and resumable anywhere."""

import json

import pytest

from megatron_gad.data.order import PromptOrder


def test_every_epoch_takes_each_row_once_in_an_order_of_its_own() -> None:
    order = PromptOrder(50, seed=3)
    epochs = [order.take(50) for _ in range(4)]
    assert all(sorted(rows) == list(range(50)) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 4


def test_inside_an_epoch_the_order_does_not_depend_on_how_much_is_taken_at_once() -> None:
    whole = PromptOrder(12, seed=1).take(36)
    for size in (1, 3, 4, 6, 12, 36):
        order = PromptOrder(12, seed=1)
        assert [row for _ in range(36 // size) for row in order.take(size)] == whole
    assert PromptOrder(12, seed=2).take(36) != whole


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("num_rows", "counts"), [(64, [48]), (5, [4]), (7, [3, 7, 1, 5]), (4, [4])]
)
def test_no_row_comes_twice_at_once_and_every_epoch_has_each_row(
    num_rows: int, counts: list[int], shuffle: bool
) -> None:
    order = PromptOrder(num_rows, seed=7, shuffle=shuffle)
    rows: list[int] = []
    for count in counts * 40:
        taken = order.take(count)
        assert len(set(taken)) == len(taken) == count
        rows += taken
        assert order.epoch == pytest.approx(len(rows) / num_rows)
    for start in range(0, len(rows) - num_rows + 1, num_rows):
        assert sorted(rows[start : start + num_rows]) == list(range(num_rows))


def test_a_row_that_would_come_twice_begins_the_next_call() -> None:
    num_put_off = 0
    for seed in range(20):
        order = PromptOrder(5, seed)
        first, second = order.take(5), order.take(5)
        last, others = first[4], [row for row in second if row != first[4]]
        order = PromptOrder(5, seed)
        assert order.take(4) == first[:4]
        assert order.take(4) == [last, *others[:3]]
        assert order.take(2) == [row for row in second if row in (last, others[3])]
        num_put_off += second.index(last) < 3
    assert 5 < num_put_off < 18

    order = PromptOrder(4, seed=0, shuffle=False)
    assert order.take(2, besides=(0, 1)) == [2, 3]
    assert order.take(3) == [0, 1, 2]


def test_rows_that_are_not_to_come_are_put_off_and_not_lost() -> None:
    order = PromptOrder(9, seed=4)
    visits = dict.fromkeys(range(9), 0)
    for call in range(300):
        besides = {(call + n) % 9 for n in range(4)}
        taken = order.take(3, besides)
        assert len(set(taken) - besides) == len(taken) == 3
        for row in taken:
            visits[row] += 1
    assert set(visits.values()) <= {99, 100, 101}
    with pytest.raises(AssertionError):
        order.take(7, besides=(1, 2, 3))


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
    whole.take(taken // 3)
    whole.take(taken - taken // 3)
    state = whole.state_dict()
    assert json.loads(json.dumps(state)) == state
    resumed = PromptOrder(10, seed=5)
    resumed.take(4)  # a position of its own must not matter
    resumed.load_state_dict(state)
    assert resumed.epoch == whole.epoch
    assert [resumed.take(7) for _ in range(9)] == [whole.take(7) for _ in range(9)]


def test_a_state_that_put_nothing_off_may_leave_that_out() -> None:
    order = PromptOrder(10, seed=5)
    order.take(17)
    state = {key: value for key, value in order.state_dict().items() if key != "put_off"}
    resumed = PromptOrder(10, seed=5)
    resumed.load_state_dict(state)
    assert resumed.take(3) == order.take(3)


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
