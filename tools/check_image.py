"""Build the image for CPUs without a Docker daemon, and run what it is for inside it.

    python -m tools.check_image

Runs examples/tiny/run.sh and ``make test-fast`` in the image. Needs root, and on Debian the
packages buildah and debootstrap. pip's configuration on this machine holds in the build as well.

PYTHON_IMAGE=image      the image to start from; by default the Dockerfile's, or where no registry
                        has it Debian 12 with its own Python 3.11, from the mirror that apt uses.
TORCH_INSTALL="..."     how torch is installed; by default as the Dockerfile says.
"""

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.check_versions import dockerfile_images

ROOT = Path(__file__).resolve().parents[1]
IMAGE = "localhost/megatron-gad:cpu"
DEBIAN_IMAGE = "localhost/debian-python:3.11"
DEBIAN_PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"
CHECKS = (
    ("examples/tiny/run.sh",),
    ("test", "-s", "runs/tiny/report.html"),
    ("make", "test-fast"),
)


def main() -> None:
    """Build, then run every check in the same container; the first that fails ends this."""
    help_text = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=help_text).parse_args()
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        sys.exit("check_image: run it as root, after apt-get install buildah debootstrap")
    # Works inside most containers too: it needs no namespaces.
    os.environ.setdefault("BUILDAH_ISOLATION", "chroot")
    build(os.environ.get("PYTHON_IMAGE") or python_image())
    with container(IMAGE) as name:
        for command in CHECKS:
            buildah("run", name, "--", *command)
    print(f"{IMAGE} was built; {'; '.join(' '.join(command) for command in CHECKS)} passed in it")


def build(python_image: str) -> None:
    """Build the Dockerfile's target for CPUs, with pip's configuration mounted, not copied."""
    arguments = {"PYTHON_IMAGE": python_image, "TORCH_INSTALL": os.environ.get("TORCH_INSTALL")}
    flags = [f"--build-arg={name}={value}" for name, value in arguments.items() if value]
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        settings = pip_settings(output_of(sys.executable, "-m", "pip", "config", "list"))
        file.write(pip_file(settings))
        file.flush()
        mounts = {path: path for path in named_paths(settings)} | {file.name: "/etc/pip.conf"}
        flags += [f"--volume={here}:{there}:ro" for here, there in mounts.items()]
        buildah("build", "--target=cpu", f"--tag={IMAGE}", *flags, str(ROOT))


def python_image() -> str:
    """Return the image that the Dockerfile starts from, or a stand-in for it made of Debian."""
    image = dockerfile_images((ROOT / "Dockerfile").read_text(encoding="utf-8"))[0]
    if subprocess.run(["buildah", "pull", "--quiet", image]).returncode == 0:
        return image
    print(f"{image} cannot be pulled; making {DEBIAN_IMAGE} in its place")
    with tempfile.TemporaryDirectory() as folder, container("scratch") as name:
        release = ["bookworm", folder, *apt_mirror("bookworm")]
        options = ["--variant=minbase", f"--include={DEBIAN_PACKAGES}"]
        subprocess.run(["debootstrap", *options, *release], check=True)
        buildah("copy", "--quiet", name, folder, "/")
        buildah("commit", "--quiet", name, DEBIAN_IMAGE)
    return DEBIAN_IMAGE


def apt_mirror(release: str) -> list[str]:
    """Return where apt gets a release of Debian on this machine; empty if it gets another."""
    listed = output_of("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)")
    lines = (line.split() for line in listed.splitlines())
    return [uri for uri, name in lines if name == release][:1]


def pip_settings(listed: str) -> dict[str, dict[str, str]]:
    """Return section -> option -> value of what ``pip config list`` prints.

    Options of the environment count as global ones and win, as they do for pip.
    """
    settings: dict[str, dict[str, str]] = defaultdict(dict)
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        name, value = line.split("=", 1)
        section, option = name.replace(":env:", "global").split(".", 1)
        settings[section][option] = ast.literal_eval(value)
    return dict(settings)


def pip_file(settings: dict[str, dict[str, str]]) -> str:
    """Return settings as pip.conf has them."""
    lines = []
    for section, options in settings.items():
        lines.append(f"[{section}]")
        for option, value in options.items():
            lines.append(f"{option} = {' '.join(value.split())}")
    return "\n".join([*lines, ""])


def named_paths(settings: dict[str, dict[str, str]]) -> list[str]:
    """Return the files and folders of this machine that settings name.

    The pages of an index in a folder refer to packages beside it, so its parent is returned.
    """
    words = {
        w for options in settings.values() for value in options.values() for w in value.split()
    }
    paths = {Path(word) for word in words if word.startswith("/")}
    paths |= {Path(word.removeprefix("file://")).parent for word in words if word[:8] == "file:///"}
    return sorted(str(path) for path in paths if path.exists())


@contextmanager
def container(image: str) -> Iterator[str]:
    """Give the name of a container made from an image; remove it at the end."""
    name = output_of("buildah", "from", "--pull-never", image).strip()
    try:
        yield name
    finally:
        buildah("rm", name)


def buildah(*arguments: str) -> None:
    """Run buildah; end with its status if it fails."""
    status = subprocess.run(["buildah", *arguments]).returncode
    if status:
        sys.exit(f"check_image: buildah {' '.join(arguments)} ended with status {status}")


def output_of(*command: str) -> str:
    """Run a command and return what it prints."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
