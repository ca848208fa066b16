"""The image is built with the settings that pip has on this machine."""

from pathlib import Path

from tools.check_image import named_paths, pip_file, pip_settings


def test_settings_of_files_and_environment_become_one_file_for_pip(tmp_path: Path) -> None:
    index, wheels, constraints = tmp_path / "pypi/simple", tmp_path / "wheels", tmp_path / "c.txt"
    index.mkdir(parents=True)
    wheels.mkdir()
    constraints.touch()
    settings = pip_settings(
        ":env:.find-links='/lost " + f"{wheels}'\n"
        "global.find-links='/other'\n"
        f"global.extra-index-url='\\nfile://{index}\\nhttps://packages.example/simple'\n"
        f"install.constraint='{constraints}'\n"
    )
    assert pip_file(settings) == (
        f"[global]\nfind-links = /lost {wheels}\n"
        f"extra-index-url = file://{index} https://packages.example/simple\n"
        f"[install]\nconstraint = {constraints}\n"
    )
    assert named_paths(settings) == sorted(map(str, (constraints, index.parent, wheels)))
