"""Write the page of a run, or compare runs: python tools/report_run.py RUN [RUN ...] [--watch]."""

import sys

from megatron_gad.reporting.command import report


def main() -> None:
    """Write the page of a run, serve it while the run goes on, or compare several."""
    try:
        report(sys.argv[1:], "report_run")
    except (ValueError, OSError) as error:
        raise SystemExit(f"report_run: {error}") from None


if __name__ == "__main__":
    main()
