"""Where the servers of one rank's engine are, and for whom."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_gad.engines.sglang.sharing import Sharing


@dataclass(frozen=True)
class ServerSite:
    """Where a rank's servers run, what they write to, and whom they serve.

    gpus: numbers of those that they share out; empty: that of the engine's device.
    folder: the run directory: the output of servers that start here goes to its logs/, and
        weights that servers at URLs read from files to its weights/.
    sharing: the ranks that all servers serve; None: each its own.
    """

    gpus: Sequence[int] = ()
    folder: Path = Path(tempfile.gettempdir())
    sharing: Sharing | None = None

    @property
    def logs(self) -> Path:
        """The folder of the servers' output."""
        return self.folder / "logs"

    @property
    def weights(self) -> Path:
        """The folder of the files that servers at URLs read weights from."""
        return self.folder / "weights"
