"""Models by their names on a hub: fetched once, found again without it, refused with the remedy."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from megatron_gad.models.hub import is_hub_name, name_of

ROOT = Path(__file__).resolve().parents[3]
NAME = "tiny-team/tiny-student"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# What a folder of the hub may hold besides what is wanted.
UNWANTED = {"modeling_tiny.py": b"raise SystemExit('code ran')", "pytorch_model.bin": b"pickle"}


class Hub(ThreadingHTTPServer):
    """The part of the hub's API that a download of one model uses; it records the requests."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {file.name: file.read_bytes() for file in folder.iterdir()} | UNWANTED
        self.asked: list[str] = []


class Answer(BaseHTTPRequestHandler):
    server: Any

    def do_HEAD(self) -> None:
        self.answer(has_body=False)

    def do_GET(self) -> None:
        self.answer(has_body=True)

    def answer(self, has_body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        body, headers = self.found(path)
        self.send_response(404 if body is None else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        if has_body and body:
            self.wfile.write(body)

    def found(self, path: str) -> tuple[bytes | None, dict[str, str]]:
        files: dict[str, bytes] = self.server.files
        as_json = {"Content-Type": "application/json"}
        if re.fullmatch(rf"/api/models/{NAME}(/revision/(main|{COMMIT}))?", path):
            siblings = [{"rfilename": name} for name in files]
            about = {"id": NAME, "modelId": NAME, "sha": COMMIT, "siblings": siblings}
            return json.dumps(about).encode(), as_json
        if path.startswith(f"/api/models/{NAME}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": etag(data)}
                for name, data in files.items()
            ]
            return json.dumps(entries).encode(), as_json
        prefix, _, name = path.rpartition("/")
        if prefix.startswith(f"/{NAME}/resolve/") and name in files:
            facts = {"ETag": f'"{etag(files[name])}"', "X-Repo-Commit": COMMIT}
            return files[name], facts
        return None, {"X-Error-Code": "RepoNotFound"}

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def etag(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    with Hub(folder) as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def start(
    tmp_path: Path, assets: Path, endpoint: str, *flags: str, cache: str = "hf"
) -> "subprocess.Popen[str]":
    """Start the command in a folder of its own, with a hub cache of its own."""
    data = ["--data.path", str(assets / "train.jsonl"), "--data.eval-path", ""]
    steps = ["--seqkd.steps", "1", "--stages", "seqkd", "--save", str(tmp_path / "run")]
    recipe = str(ROOT / "examples/tiny/run.toml")
    hub = {"HF_HOME": str(tmp_path / cache), "HF_ENDPOINT": endpoint, "HF_HUB_ETAG_TIMEOUT": "5"}
    return subprocess.Popen(
        [sys.executable, "-m", "megatron_gad", recipe, *data, *steps, *flags],
        env={**os.environ, **hub, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


@pytest.mark.slow
def test_a_name_is_fetched_once_and_then_found_without_the_hub(
    tmp_path: Path, assets: Path
) -> None:
    named = ("--student.path", NAME)
    with serve(assets / "student") as hub:
        url = f"http://127.0.0.1:{hub.server_address[1]}"
        status, output = finish(start(tmp_path, assets, url, *named, "--dry-run"))
        assert status == 2, output
        assert f"hf download {NAME}" in output
        assert hub.asked == []  # a dry run changes nothing, so it fetches nothing
        status, output = finish(start(tmp_path, assets, url, *named))
        assert status == 0, output
        fetched = [line for line in hub.asked if line.startswith("GET") and "/resolve/" in line]
    assert sorted(line.rpartition("/")[2] for line in fetched) == sorted(
        file.name for file in (assets / "student").iterdir()
    )
    assert f'path = "{NAME}@{COMMIT}"' in (tmp_path / "run" / "config.toml").read_text()
    # The hub is gone, and the cache is elsewhere: the name is the same, so nothing has changed.
    shutil.move(tmp_path / "hf", tmp_path / "elsewhere")
    pinned = ("--student.path", f"{NAME}@{COMMIT}")
    process = start(tmp_path, assets, "http://127.0.0.1:9", *pinned, cache="elsewhere")
    status, output = finish(process)
    assert status == 0, output
    assert list((tmp_path / "run").glob("config_*.toml")) == []
    assert "iteration " not in output  # its one step was done before


@pytest.mark.slow
def test_processes_of_a_node_fetch_a_model_once(tmp_path: Path, assets: Path) -> None:
    code = (
        "import sys; from megatron_gad.models.hub import find_model; "
        f"print(find_model('student.path', '{NAME}', may_fetch=True))"
    )
    with serve(assets / "student") as hub:
        url = f"http://127.0.0.1:{hub.server_address[1]}"
        env = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": url, "PYTHONPATH": str(ROOT)}
        started = [
            subprocess.Popen(
                [sys.executable, "-c", code],
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for _ in range(3)
        ]
        outputs = [finish(process) for process in started]
        fetched = [line for line in hub.asked if line.startswith("GET") and "/resolve/" in line]
    assert [status for status, _ in outputs] == [0, 0, 0], outputs
    folders = {output.splitlines()[-1] for _, output in outputs}
    assert len(folders) == 1
    assert name_of(folders.pop()) == f"{NAME}@{COMMIT}"
    assert len(fetched) == len(set(fetched)) == len(list((assets / "student").iterdir()))


@pytest.mark.slow
def test_a_name_that_the_hub_lacks_is_refused_with_what_was_meant(
    tmp_path: Path, assets: Path
) -> None:
    with serve(assets / "student") as hub:
        url = f"http://127.0.0.1:{hub.server_address[1]}"
        status, output = finish(start(tmp_path, assets, url, "--student.path", "tiny-team/other"))
    assert status == 2, output
    assert "student.path = 'tiny-team/other' is no folder here" in output
    assert "hf download tiny-team/other" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_processes_that_started_together_are_refused_together(tmp_path: Path, assets: Path) -> None:
    """What the hub refused after a process began is not asked for again, but by a later start."""
    code = (
        "import contextlib; from megatron_gad.models.hub import find_model\n"
        "for name in ('other', 'other', 'third'):\n"
        "    try: find_model('student.path', f'tiny-team/{name}', may_fetch=True)\n"
        "    except ValueError as error: print(error)"
    )

    def asked(hub: Hub) -> list[int]:
        environment = {**os.environ, "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        environment["HF_ENDPOINT"] = f"http://127.0.0.1:{hub.server_address[1]}"
        hub.asked.clear()
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        first, second, third = done.stdout.splitlines()
        assert first == second and "'tiny-team/other' is no folder here" in first, done.stderr
        assert "hf download tiny-team/third" in third
        return [sum(name in line for line in hub.asked) for name in ("other", "third")]

    with serve(assets / "student") as hub:
        once, third = asked(hub)
        assert once == third > 0
        assert asked(hub) == [once, third]


def test_a_path_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("Qwen/Qwen2.5-0.5B-Instruct")
    assert is_hub_name("Qwen/Qwen2.5-0.5B-Instruct@refs/pr/1")
    assert not is_hub_name("/models/Qwen2.5")
    assert not is_hub_name("a/b/c")
    assert not is_hub_name("")
    (tmp_path / "models").mkdir()
    assert not is_hub_name("models/Qwen2.5")  # a folder that is not there yet, not a team's name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"/x/hub/models--Qwen--Qwen2.5-7B/snapshots/{COMMIT}", f"Qwen/Qwen2.5-7B@{COMMIT}"),
        (f"/x/hub/models--a--b--c/snapshots/{COMMIT}", f"a/b--c@{COMMIT}"),
        ("models/Qwen2.5-7B", "models/Qwen2.5-7B"),
        ("", ""),
    ],
)
def test_a_snapshot_is_known_by_its_name(path: str, name: str) -> None:
    assert name_of(path) == name
