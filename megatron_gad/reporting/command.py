"""``megatron-gad report``: a run's page, as a file or served while the run goes on."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from megatron_gad.reporting.live import page_server
from megatron_gad.reporting.page import build_report


@dataclass(frozen=True)
class ReportOptions:
    """Write report.html, one self-contained page about a run.

    Attributes:
        run_folder: the run directory, the one that --save named; the run may still be going.
        watch: serve the page on 127.0.0.1 instead; it follows the run until Ctrl-C.
        port: of the page that is served; 0: a free one.
    """

    run_folder: tyro.conf.Positional[Path]
    watch: bool = False
    port: int = 8400


def report(argv: Sequence[str], name: str) -> None:
    """Obey the words behind the command.

    Raises ValueError if the folder is no run, OSError if a file or the port cannot be used.
    """
    options = tyro.cli(ReportOptions, prog=name, args=list(argv))
    if not options.watch:
        print(build_report(options.run_folder))
        return
    with page_server(options.run_folder, options.port) as server:
        host, port = server.server_address[:2]
        print(f"http://{host}:{port} follows {options.run_folder}; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("", file=sys.stderr)
