"""What all tests need first, and which may run beside each other (pytest-xdist)."""

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from megatron_gad.cpu_seam import install_if_needed

install_if_needed()

# Their files start several ranks, whose threads poll: on few cores many at once starve each other.
MANY_RANKS = ("tests/distributed/", "tests/e2e/", "tests/oracle/test_layouts.py")
# ... but for these, which mostly wait.
WAITING = ("tests/distributed/test_run_folder.py", "tests/e2e/test_hang.py")


class FilesTogether(LoadScopeScheduling):
    """Gives the tests of a file to one process, and files of many ranks to one process at a time.

    The others run beside them, and those of many ranks beside each other when nothing else is left.
    """

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.split("::")[0]

    def _assign_work_unit(self, node: WorkerController) -> None:
        is_busy = any(
            has_many_ranks(file) and not all(tests.values())
            for other, files in self.assigned_work.items()
            for file, tests in files.items()
            if other is not node
        )
        wanted = (file for file in self.workqueue if has_many_ranks(file) != is_busy)
        self.workqueue.move_to_end(next(wanted, next(iter(self.workqueue))), last=False)
        super()._assign_work_unit(node)


def has_many_ranks(file: str) -> bool:
    """Whether a file's tests keep all cores busy by themselves."""
    return file.startswith(MANY_RANKS) and file not in WAITING


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Let pytest-xdist share tests out so."""
    return FilesTogether(config, log)
