"""Which tests may run beside each other where pytest runs several at once (pytest-xdist)."""

from pathlib import Path

import pytest

# They start several ranks, whose threads poll: on few cores two at once starve each other.
MANY_RANKS = ("tests/distributed/", "tests/e2e/")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file together, and those of many ranks."""
    for item in items:
        file = item.nodeid.split("::")[0]
        group = "ranks" if file.startswith(MANY_RANKS) else Path(file).stem
        item.add_marker(pytest.mark.xdist_group(group))
