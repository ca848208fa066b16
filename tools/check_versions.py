"""Ask pip whether the versions exist that Dockerfile, setup.py and make_sglang_env.sh name.

    python tools/check_versions.py [PACKAGE ...]

Without names every requirement is asked for: an exact version has to exist, a range has to hold at
least one. Where pip looks is pip's configuration. Exit status: 0 all exist, 1 some do not.
"""

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
SGLANG_SCRIPT = "tools/make_sglang_env.sh"
PINNED = re.compile(r"[A-Za-z0-9][\w.-]*(?:\[[\w,.-]+\])?==[\w.+!-]+")


@dataclass(frozen=True)
class Named:
    """A requirement and the file that names it."""

    requirement: Requirement
    source: str


def dockerfile_requirements(text: str) -> list[Requirement]:
    """Return the exact versions in a Dockerfile's RUN lines, its ARG defaults put in."""
    defaults = dict(re.findall(r"(?m)^ARG (\w+)=(\S+)$", text))
    text = re.sub(r"(?m)^\s*#.*\n", "", text).replace("\\\n", " ")
    runs = "\n".join(re.findall(r"(?m)^RUN .*$", text))
    runs = re.sub(r"\$\{(\w+)\}", lambda found: defaults.get(found[1], found[0]), runs)
    return [Requirement(found) for found in PINNED.findall(runs)]


def script_requirements(text: str) -> list[Requirement]:
    """Return the exact versions in a shell script, its comments left out."""
    return [Requirement(found) for found in PINNED.findall(re.sub(r"(?m)(^|\s)#.*$", "", text))]


def dockerfile_images(text: str) -> list[str]:
    """Return the images that a Dockerfile starts from; pip cannot say whether these exist."""
    defaults = dict(re.findall(r"(?m)^ARG (\w+)=(\S+)$", text))
    names = re.findall(r"(?m)^FROM (\S+)", text)
    return [re.sub(r"\$\{(\w+)\}", lambda found: defaults[found[1]], name) for name in names]


def setup_requirements(text: str) -> list[Requirement]:
    """Return what install_requires and extras_require of a setup.py list."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.keyword) and node.arg == "install_requires":
            found += ast.literal_eval(node.value)
        if isinstance(node, ast.keyword) and node.arg == "extras_require":
            found += [name for names in ast.literal_eval(node.value).values() for name in names]
    return [Requirement(name) for name in found]


def available_versions(output: str) -> list[Version]:
    """Return the versions that ``pip index versions`` printed; none where it found no package."""
    listed = re.search(r"(?m)^Available versions: (.+)$", output)
    return [Version(version) for version in listed[1].split(", ")] if listed else []


def main(packages: Annotated[tuple[str, ...], tyro.conf.Positional] = ()) -> int:
    """Say of every requirement whether pip finds it; return the exit status."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    script = (ROOT / SGLANG_SCRIPT).read_text(encoding="utf-8")
    named = [Named(found, "Dockerfile") for found in dockerfile_requirements(dockerfile)]
    named += [Named(found, "setup.py") for found in setup_requirements(setup)]
    named += [Named(found, SGLANG_SCRIPT) for found in script_requirements(script)]
    wanted = {canonicalize_name(name) for name in packages}
    missing = 0
    for one in named:
        name = canonicalize_name(one.requirement.name)
        if wanted and name not in wanted:
            continue
        fitting = [*one.requirement.specifier.filter(_ask_pip(name))]
        missing += not fitting
        answer = f"{max(fitting)}" if fitting else "NOT FOUND"
        print(f"{one.source:24}  {one.requirement!s:56}  {answer}")
    for image in dockerfile_images(dockerfile) if not wanted else ():
        print(f"{'Dockerfile':24}  {image:56}  an image, not asked for")
    return 1 if missing else 0


def _ask_pip(name: str) -> list[Version]:
    """Return all versions of a package, for whatever Python."""
    command = [sys.executable, "-m", "pip", "index", "versions", name, "--ignore-requires-python"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return available_versions(done.stdout)


if __name__ == "__main__":
    sys.exit(tyro.cli(main, description=__doc__))
