"""``megatron-gad report``: a run's page, as a file or served, or one that compares several."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from megatron_gad.reporting.comparison import build_comparison
from megatron_gad.reporting.live import page_server
from megatron_gad.reporting.page import build_report


@dataclass(frozen=True)
class ReportOptions:
    """Write report.html, one self-contained page about a run; of several runs a comparison.

    Attributes:
        run_folders: the run directory, the one that --save named; the run may still be going.
            With several, comparison.html in the first has their curves over each other.
        out: file of the comparison, if it is to be elsewhere.
        watch: serve the page on 127.0.0.1 instead; it follows the run until Ctrl-C.
        port: port of the page that is served; 0: a free one.
    """

    run_folders: tyro.conf.Positional[tuple[Path, ...]]
    out: Path | None = None
    watch: bool = False
    port: int = 8400


def report(argv: Sequence[str], name: str) -> None:
    """Obey the words behind the command.

    Raises ValueError if the folder is no run, OSError if a file or the port cannot be used.
    """
    options = tyro.cli(ReportOptions, prog=name, args=list(argv))
    folders = list(options.run_folders)
    if not folders:
        raise ValueError("no run directory is named; name one, or several to compare them")
    first, is_one = folders[0], len(folders) == 1
    if options.watch and not is_one:
        raise ValueError("--watch follows one run; name one, or leave --watch out")
    if options.out and is_one:
        raise ValueError("--out is of a comparison; name several runs, or leave it out")
    if not options.watch:
        print(build_report(first) if is_one else build_comparison(folders, options.out))
        return
    with page_server(first, options.port) as server:
        host, port = server.server_address[:2]
        print(f"http://{host}:{port} follows {first}; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("", file=sys.stderr)
