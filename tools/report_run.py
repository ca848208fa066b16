"""Write report.html into a run folder: python tools/report_run.py RUN_FOLDER."""

from pathlib import Path

import tyro

from megatron_gad.reporting.page import build_report


def main(run_folder: tyro.conf.Positional[Path]) -> None:
    """Write report.html, one self-contained page about a run.

    Args:
        run_folder: the run directory, the one that --save named; the run may still be going.
    """
    try:
        print(build_report(run_folder))
    except (ValueError, OSError) as error:
        raise SystemExit(f"report_run: {error}") from None


if __name__ == "__main__":
    tyro.cli(main)
