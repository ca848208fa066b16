"""Rows of a data set of the Hugging Face Hub."""
# pyright: basic
# (the types of datasets are incomplete)

from collections.abc import Collection, Iterator
from pathlib import Path

from megatron_gad.data.rows import Row, without_nulls

DEFAULT_SPLIT = "train"


def is_here(name: str) -> bool:
    """Return whether a data set is on this machine: in the cache of ``datasets``, or a folder."""
    from datasets import config  # noqa: PLC0415 - see read_hub_rows

    repository = name.partition(":")[0]
    cached = Path(config.HF_DATASETS_CACHE) / repository.replace("/", "___")
    return cached.is_dir() or Path(repository).is_dir()


def read_hub_rows(name: str, wanted: Collection[str]) -> Iterator[Row]:
    """Yield the rows of a data set, from the local cache once it is there.

    name: ``owner/name`` for the split "train", or ``owner/name:split``.
    wanted: the columns that may be read.

    Raises ValueError when it cannot be loaded.
    """
    repository, _, split = name.partition(":")
    if not repository:
        raise ValueError(f"hub:{name} names no data set; write hub:OWNER/NAME")
    # A second of every rank's start, which runs on local files should not pay.
    import datasets  # noqa: PLC0415
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    try:
        rows = datasets.load_dataset(repository, split=split or DEFAULT_SPLIT)
    except (OSError, ValueError, DatasetsError) as error:
        raise ValueError(
            f"hub:{name} cannot be loaded ({error}); check the name, its split and the network, or "
            "download the data set and give its folder"
        ) from error
    if not isinstance(rows, datasets.Dataset):
        raise ValueError(f"hub:{name} is a {type(rows).__name__}; name one split, hub:NAME:SPLIT")
    names = rows.column_names
    chosen = [column for column in names if column in wanted]
    for number, row in enumerate(rows.select_columns(chosen) if chosen else rows, 1):
        values = {column: without_nulls(cell) for column, cell in dict(row).items()}
        yield Row(f"hub:{name}", f"hub:{name} row {number}", values, names)
