"""The package as pip installs it, beside nothing of the checkout: a run to its report."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e import tiny_run

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "megatron_gad")


def call(command: Sequence[str | Path], folder: Path) -> str:
    """Run a command in a folder where nothing of the checkout is importable; return its output."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["OMP_NUM_THREADS"] = "1"
    ended = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stdout[-4000:]
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel, from a copy: setuptools writes beside its sources, and reads that again."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"
    copy.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-build-isolation", "--no-deps"]
    call([*pip, "--wheel-dir", folder, copy], folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a fresh environment; return the environment's folder."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "install"]
    call([*pip, "--no-index", "--no-deps", wheel], folder)
    # The dependencies are those of this environment. Files of it that add to sys.path, as an
    # editable install has, are not read from there.
    (site_packages,) = folder.glob("lib/python*/site-packages")
    ours = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site_packages / "dependencies.pth").write_text("\n".join(ours))
    return folder


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    ours = [path for path in (ROOT / "megatron_gad").rglob("*") if path.is_file()]
    expected = {str(path.relative_to(ROOT)) for path in ours if path.suffix != ".pyc"}
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_an_installed_run_ends_with_its_report_and_ends_as_well_without(
    installed: Path, tmp_path: Path
) -> None:
    where = "import megatron_gad; print(megatron_gad.__file__)"
    package = Path(call([installed / "bin/python", "-c", where], tmp_path).strip()).parent
    assert package.is_relative_to(installed)
    shutil.copy(ROOT / "examples/tiny/run.toml", tmp_path)
    shutil.copytree(tiny_run.assets(), tmp_path / "runs/tiny/assets")
    command = [installed / "bin/megatron-gad", "run.toml", "--no-tensorboard"]

    call(command, tmp_path)
    run = tmp_path / "runs/tiny"
    assert [record["step"] for record in tiny_run.metrics(run)] == list(range(1, 12))
    page = (run / "report.html").read_text()
    for name in ("page.css", "page.js"):
        assert (ROOT / "megatron_gad/reporting/templates" / name).read_text() in page

    (run / "report.html").unlink()
    (package / "reporting/templates/page.html.jinja").unlink()
    said = call(command, tmp_path)  # what is over goes on to its end, and its report, again
    assert "runs/tiny gets no new report.html; the run itself is not affected: Template" in said
    assert not (run / "report.html").exists()
