"""The versions that are asked for are those that Dockerfile, setup.py and a script name."""

from packaging.version import Version

from tools.check_versions import (
    ROOT,
    SGLANG_SCRIPT,
    available_versions,
    dockerfile_images,
    dockerfile_requirements,
    script_requirements,
    setup_requirements,
)

DOCKERFILE = """
ARG IMAGE=base:1
FROM ${IMAGE} AS first
ARG ONE_VERSION=1.2.3
# a comment with three==3
RUN pip install \\
        # another with four==4
        "one[extra,more]==${ONE_VERSION}" \\
        two-b==0.1.post1 six>=6
ENV FIVE=five==5
FROM other:2
RUN grep -E '^(torch|sglang)==' && pip install one==${ONE_VERSION}
"""


def test_exact_versions_of_a_dockerfile_are_found_with_their_arguments() -> None:
    found = [str(requirement) for requirement in dockerfile_requirements(DOCKERFILE)]
    assert found == ["one[extra,more]==1.2.3", "two-b==0.1.post1", "one==1.2.3"]
    assert dockerfile_images(DOCKERFILE) == ["base:1", "other:2"]


def test_the_projects_images_have_the_versions_that_its_ranges_allow() -> None:
    pinned = dockerfile_requirements((ROOT / "Dockerfile").read_text())
    ranges = {found.name: found for found in setup_requirements((ROOT / "setup.py").read_text())}
    assert {"torch", "megatron-core", "transformer-engine"} == {found.name for found in pinned}
    for found in pinned:
        version = str(found.specifier).removeprefix("==")
        assert ranges[found.name].specifier.contains(version), found


def test_exact_versions_of_a_script_are_found_and_its_comments_left_out() -> None:
    text = '# a==1\none=b-c==2.0.post1 # d==3\nmore=(e==4 \'f>=5\' "g==6")\n[ "$h" == i ]\n'
    found = [str(requirement) for requirement in script_requirements(text)]
    assert found == ["b-c==2.0.post1", "e==4", "g==6"]


def test_the_servers_environment_has_the_versions_that_the_extra_allows() -> None:
    pinned = script_requirements((ROOT / SGLANG_SCRIPT).read_text())
    assert {"sglang", "torch", "torchvision", "transformers"} <= {found.name for found in pinned}
    ranges = {found.name: found for found in setup_requirements((ROOT / "setup.py").read_text())}
    versions = [str(found.specifier)[2:] for found in pinned if found.name == "sglang"]
    assert len(versions) == 2
    assert all(ranges["sglang"].specifier.contains(version) for version in versions)


def test_requirements_of_a_setup_file_include_the_extras() -> None:
    text = "setup(install_requires=['a>=1,<2'], extras_require={'x': ['b==3'], 'y': ['c']})"
    assert [str(found) for found in setup_requirements(text)] == ["a<2,>=1", "b==3", "c"]


def test_versions_are_read_from_what_pip_prints() -> None:
    printed = "torch (2.13.0)\nAvailable versions: 2.13.0, 2.11.0+cpu\n  INSTALLED: 2.13.0+cpu\n"
    assert available_versions(printed) == [Version("2.13.0"), Version("2.11.0+cpu")]
    assert available_versions("") == []
