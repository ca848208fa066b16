"""A process that has imported what tests need, and runs each lot of them in a fork of itself.

Started by ``copies.TestServer``. The package and the tests are imported again in every fork, from
the copy that it is to test.
"""

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence

import pytest
import transformers.models.llama.modeling_llama
import transformers.models.qwen2.modeling_qwen2  # noqa: F401

from megatron_gad.cpu_seam import install_if_needed

install_if_needed()

# isort: split
import megatron_gad.train  # noqa: E402, F401

OWN = ("tests", "megatron_gad")
OPTIONS = ("-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--no-header")
POLL_S = 0.02


def main() -> None:
    """Answer every line of JSON, {copy, tests, log, timeout_s}, with pytest's exit status."""
    for line in sys.stdin:
        print(json.dumps(_run(**json.loads(line))), flush=True)


def _run(copy: str, tests: Sequence[str], log: str, timeout_s: float) -> int | None:
    """Run tests in a fork; None if they do not end in time."""
    child = os.fork()
    if child == 0:
        sys.exit(_test(copy, tests, log))
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL_S)
    os.killpg(child, signal.SIGKILL)  # with the ranks that the tests started
    os.waitpid(child, 0)
    return None


def _test(copy: str, tests: Sequence[str], log: str) -> int:
    """Run pytest in a copy, as a process does that was started there."""
    os.setsid()
    nothing, file = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT)
    os.truncate(log, 0)
    for target, source in enumerate((nothing, file, file)):
        os.dup2(source, target)
    os.chdir(copy)
    sys.path[:] = [copy, *(path for path in sys.path if path not in ("", os.environ["PROJECT"]))]
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": copy, "PYTHONDONTWRITEBYTECODE": "1"}
    _forget_own_modules()
    importlib.invalidate_caches()
    return int(pytest.main([*OPTIONS, *tests]))


def _forget_own_modules() -> None:
    """Let the package and its tests be imported anew, but for what has changed how to import."""
    hooks = {type(finder).__module__ for finder in sys.meta_path}
    for name in [name for name in sys.modules if name.split(".")[0] in OWN]:
        if name not in hooks and name != "__main__":
            del sys.modules[name]


if __name__ == "__main__":
    main()
