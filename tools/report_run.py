"""Write report.html into a run folder: python tools/report_run.py RUN_FOLDER [--watch]."""

import sys

from megatron_gad.reporting.command import report


def main() -> None:
    """Write the page of a run, or serve it while the run goes on."""
    try:
        report(sys.argv[1:], "report_run")
    except (ValueError, OSError) as error:
        raise SystemExit(f"report_run: {error}") from None


if __name__ == "__main__":
    main()
