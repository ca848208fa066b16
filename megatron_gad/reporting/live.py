"""The page of a run that goes on, served to a browser on this machine."""

import logging
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from megatron_gad.reporting.page import render_report
from megatron_gad.reporting.run_record import read_run
from megatron_gad.runtime.metrics import METRICS_FILE, RESULTS_FILE

LOOPBACK = "127.0.0.1"
POLL_MS = 5000
# Loads the page anew once the run has written more; the place on the page stays.
RELOAD = """<script>
(() => {
  const version = "%s";
  setInterval(async () => {
    try {
      const found = await (await fetch("version")).text();
      if (found !== version) location.reload();
    } catch (error) { /* the server is gone: the page stays as it is */ }
  }, %d);
})();
</script>"""

logger = logging.getLogger(__name__)


def page_server(run_folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """Return a server of a run's page for this machine alone; ``serve_forever`` runs it.

    Every request draws the page from what the run has written until then.

    port: 0 takes a free one; ``server_address`` tells which.

    Raises ValueError if the folder is no run, OSError if the port is taken.
    """
    read_run(run_folder)
    return ThreadingHTTPServer((LOOPBACK, port), partial(_Handler, run_folder))


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, run_folder: Path, *arguments: object) -> None:
        self._run_folder = run_folder
        super().__init__(*arguments)  # pyright: ignore[reportArgumentType]

    def do_GET(self) -> None:
        """Answer with the page, or with what tells whether it would be another."""
        version = _version(self._run_folder)
        if self.path == "/version":
            self._answer(version, "text/plain")
        elif self.path == "/":
            page = render_report(self._run_folder)
            self._answer(
                page.replace("</body>", RELOAD % (version, POLL_MS) + "</body>"), "text/html"
            )
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: object) -> None:
        """Keep requests off the terminal."""
        logger.debug(format, *args)

    def _answer(self, text: str, kind: str) -> None:
        body = text.encode(errors="xmlcharrefreplace")
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)


def _version(run_folder: Path) -> str:
    """Return what changes whenever the page would."""
    sizes = []
    for name in (METRICS_FILE, RESULTS_FILE):
        file = run_folder / name
        state = file.stat() if file.exists() else None
        sizes.append("-" if state is None else f"{state.st_size}.{state.st_mtime_ns}")
    return "/".join(sizes)
