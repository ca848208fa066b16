"""No secret gets into a file or a message; servers at URLs are given the key all the same."""

import sys
from pathlib import Path

import pytest

from megatron_gad.__main__ import main
from megatron_gad.engines.sglang.client import SGLangClient
from megatron_gad.environment import SERVER_KEY
from tests.recording_server import recording_server
from tests.tiny_run import make_run

SECRET = "Hush-7f3a"
SERVERS = "[rollout]\nengine = 'sglang'\n[sglang]\n"


@pytest.mark.parametrize(
    ("table", "flags", "said"),
    [
        ("", ("--sglang-api-key", SECRET), "sglang.server_args sets api_key"),
        (SERVERS + f"server_args = {{admin-api-key = '{SECRET}'}}", (), "sets admin-api-key"),
        ("", ("--sglang.urls", f"http://me:{SECRET}@host:1"), "'http://***@host:1'"),
        (SERVERS + f"urls = ['http://{SECRET}@host:1']", (), "names a user or a password"),
        (SERVERS + f"urls = 'http://me:{SECRET}@host:1'", (), "sglang.urls = 'http://***@host:1'"),
        ("", ("--evaluation.judge-url", f"https://me:{SECRET}@host/v1"), "'https://***@host/v1'"),
        ("", ("--wandb-project", f"https://me:{SECRET}@host/x"), "log.wandb_project"),
    ],
)
@pytest.mark.parametrize("mode", [("--dry-run",), ()])
def test_a_secret_is_refused_and_shown_nowhere(
    table: str,
    flags: tuple[str, ...],
    said: str,
    mode: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = make_run(tmp_path)
    file = tmp_path / "run.toml"
    file.write_text(table)
    save = tmp_path / "new"
    command = [str(file), "--student.path", config.student.path, "--data.path", config.data.path]
    monkeypatch.setattr(sys, "argv", ["megatron_gad", *command, "--save", str(save), *flags, *mode])
    assert main() == 2
    shown = "".join(capfd.readouterr())
    assert said in shown
    assert SECRET not in shown
    assert not save.exists()


@pytest.mark.parametrize("is_in_file", [False, True])
def test_servers_are_given_the_key_of_the_environment(
    is_in_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SERVER_KEY, raising=False)
    if is_in_file:
        (tmp_path / "key").write_text(SECRET + "\n")
        monkeypatch.setenv(f"{SERVER_KEY}_FILE", str(tmp_path / "key"))
    else:
        monkeypatch.setenv(SERVER_KEY, SECRET)
    with recording_server() as server:
        SGLangClient(server.url, timeout_s=10).ask("/server_info", None)
        assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
        monkeypatch.delenv(f"{SERVER_KEY}_FILE", raising=False)
        monkeypatch.delenv(SERVER_KEY, raising=False)
        SGLangClient(server.url, timeout_s=10).ask("/server_info", None)
        assert "Authorization" not in server.headers[1]


@pytest.mark.parametrize("content", [None, f"{SECRET}\nsecond line", f"{SECRET}\u00fc"])
def test_a_file_without_a_key_is_said_without_its_content(
    content: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
    monkeypatch.delenv(SERVER_KEY, raising=False)
    monkeypatch.setenv(f"{SERVER_KEY}_FILE", str(file))
    monkeypatch.setattr(sys, "argv", ["megatron_gad", "--dry-run"])
    assert main() == 2
    shown = "".join(capfd.readouterr())
    assert f"the file {file} ({SERVER_KEY}_FILE)" in shown
    assert SECRET not in shown
