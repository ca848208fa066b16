"""Which layouts the tests of this folder train at."""

import pytest


@pytest.fixture(scope="session")
def all_layouts(request: pytest.FixtureRequest) -> bool:
    """Whether a test is to run whose layout is one that ``make test`` leaves out."""
    return any(item.get_closest_marker("layouts") for item in request.session.items)
