"""What the tests of whole runs that sample on a real SGLang server share."""

from pathlib import Path

import psutil

from tests.engines.sglang.servers import SERVER_PYTHON

COMMON = (
    *("--stages", "adversarial", "--adversarial.steps", "5"),
    *("--rollout.engine", "sglang", "--sglang.verify-interval", "3"),
    *("--gad.tis-cap", "2", "--rollout.record"),
)
FLAGS = (
    *(*COMMON, "--sglang.python", str(SERVER_PYTHON)),
    *("--sglang.server-args", "max_total_tokens", "16384"),
)
# Between the float32 of the trainer and of the server, in nats on a sampled token.
BOUND = 1e-5


def servers_of(save: Path) -> list[psutil.Process]:
    """Return the processes that serve the model of a run, found by their log's name."""
    parents = {int(log.stem.split("_")[1]) for log in (save / "logs").glob("sglang_*.log")}
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if any("keeper.py" in part for part in command) and parents & {
            int(part) for part in command if part.isdigit()
        }:
            found += [process, *process.children(recursive=True)]
    return found
