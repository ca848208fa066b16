"""Keys that are refused by name, each with what to do instead."""

# "section.key" -> the remedy.
REMOVED = {
    "compute.num_layers_at_start_in_bf16": "first_last_layers_bf16 leaves one layer at each end out"
    " of FP8; leave this key out",
    "compute.num_layers_at_end_in_bf16": "first_last_layers_bf16 leaves one layer at each end out"
    " of FP8; leave this key out",
    "compute.optimizer_offload_fraction": "optimizer_cpu_offload moves all states; leave this key"
    " out",
}


def removed_keys(section: str) -> set[str]:
    """Return the keys of a section that are refused by name."""
    return {key.rpartition(".")[2] for key in REMOVED if key.startswith(f"{section}.")}
