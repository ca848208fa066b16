"""What a rank imports before it trains: seconds of every start, on every rank."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Packages that take a second or more, which only some ranks or some runs need.
NOT_YET = ("torch._dynamo", "transformers.modeling_utils", "datasets", "matplotlib", "pyarrow")


@pytest.mark.parametrize(
    ("module", "others"),
    [("megatron_gad.train", NOT_YET), ("megatron_gad.__main__", (*NOT_YET, "megatron.core"))],
)
def test_what_only_some_need_is_imported_where_it_is_needed(
    module: str, others: tuple[str, ...]
) -> None:
    # As the command does it.
    code = "import sys; from megatron_gad.cpu_seam import install_if_needed; install_if_needed(); "
    code += f"import {module}; print(sorted({{*{others}}} & {{*sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
