"""Which tests may run beside each other where pytest runs several at once (pytest-xdist)."""

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# They start several ranks, whose threads poll: on few cores many at once starve each other.
MANY_RANKS = ("tests/distributed/", "tests/e2e/")


class FilesTogether(LoadScopeScheduling):
    """Gives the tests of a file to one process, and those of a folder of many ranks to one."""

    def _split_scope(self, nodeid: str) -> str:
        folders = (folder for folder in MANY_RANKS if nodeid.startswith(folder))
        return next(folders, nodeid.split("::")[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Let pytest-xdist share tests out so."""
    return FilesTogether(config, log)
