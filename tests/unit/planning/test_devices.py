"""GPU types by the names that people give them."""

import pytest

from megatron_gad.planning.devices import device_of


@pytest.mark.parametrize("name", ["h100", "H100", "h100-80g"])
def test_a_type_is_known_by_its_short_name(name: str) -> None:
    assert device_of(name).memory_bytes == 81_559 * 2**20


def test_an_unknown_type_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match="'v100' is not known; use one of a100-80g, h100-80g"):
        device_of("v100")
