"""Two layouts in one process: which of them megatron.core sees, and when."""

import ast
import inspect
from collections.abc import Iterator

import pytest
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

from megatron_gad.config.layout import ParallelConfig
from megatron_gad.training.megatron_state import initial_variables
from megatron_gad.training.parallel import Parallel, add_layout


def group_of_now() -> object:
    """The tensor-parallel group that megatron.core would use."""
    return parallel_state.get_tensor_model_parallel_group()


@pytest.fixture(scope="module")
def second(place: Parallel) -> Parallel:
    """One more layout beside the first, on the same rank."""
    return add_layout(ParallelConfig(), seed=0)


def test_the_variables_begin_as_megatron_itself_begins_them(place: Parallel) -> None:
    """A version with variables that begin otherwise has to be met by ``initial_variables``."""
    written = {}
    for statement in ast.parse(inspect.getsource(parallel_state)).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name = statement.targets[0].id
            if name.startswith("_") and name.isupper():
                written[name] = ast.literal_eval(statement.value)
    assert len(written) > 40
    assert initial_variables() == written


def test_a_layout_is_seen_while_it_is_active_and_no_longer(
    place: Parallel, second: Parallel
) -> None:
    seen = group_of_now(), get_cuda_rng_tracker()
    with second.megatron_state.active():
        inner = group_of_now(), get_cuda_rng_tracker()
        with place.megatron_state.active():
            assert (group_of_now(), get_cuda_rng_tracker()) == seen
        assert (group_of_now(), get_cuda_rng_tracker()) == inner
    assert inner[0] is not seen[0]
    assert inner[1] is not seen[1]
    assert (group_of_now(), get_cuda_rng_tracker()) == seen


def test_a_failure_puts_the_layout_back(place: Parallel, second: Parallel) -> None:
    seen = group_of_now()
    with pytest.raises(ZeroDivisionError), second.megatron_state.active():
        _ = 1 / 0
    assert group_of_now() is seen


def test_a_stream_has_its_layout_for_itself(place: Parallel, second: Parallel) -> None:
    """As when one model's weights are read while the other's are filled."""

    def groups() -> Iterator[object]:
        yield group_of_now()
        yield group_of_now()

    with second.megatron_state.active():
        inner = group_of_now()
    with place.megatron_state.active():
        outer = group_of_now()
        found = []
        for group in second.megatron_state.around(groups()):
            found.append(group)
            assert group_of_now() is outer
    assert found == [inner, inner]
