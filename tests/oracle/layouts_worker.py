"""Holds runs in layouts of two ranks against the oracle; started by test_layouts.py."""

from dataclasses import replace
from pathlib import Path

from torch.distributed import destroy_process_group, init_process_group

from tests.distributed.workers import drop_groups
from tests.oracle.case import Case
from tests.oracle.cases import CASES
from tests.oracle.compare import compare
from tests.oracle.layout_cases import LAYOUTS
from tests.oracle.product import start


def main(assets: Path, folder: Path) -> None:
    """Run the cases of every layout.

    assets: the student and its data. folder: to run in.
    """
    init_process_group("gloo")
    for layout, (options, names) in LAYOUTS.items():
        drop_groups()
        place = start(Case(options).options(assets, folder), world_size=2)
        for name in names:
            case = replace(CASES[name], changed=CASES[name].changed | options)
            compare(f"{layout}: {name}", case, assets, folder / layout / name, place)
    destroy_process_group()
