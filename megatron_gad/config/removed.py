"""Keys that are refused by name, each with what to do instead."""

# "section.key" -> the remedy.
REMOVED = {
    **dict.fromkeys(
        (
            "compute.first_last_layers_bf16",
            "compute.num_layers_at_start_in_bf16",
            "compute.num_layers_at_end_in_bf16",
        ),
        "with fp8_format all layers compute in FP8; leave this key out",
    ),
    **dict.fromkeys(
        ("compute.exp_avg_dtype", "compute.exp_avg_sq_dtype"),
        "moments are float32; optimizer_cpu_offload frees the GPU of them. Leave this key out",
    ),
    "compute.optimizer_offload_fraction": "optimizer_cpu_offload moves all states; leave this key"
    " out",
    "compute.main_params_dtype": "main weights are float32; leave this key out",
    **dict.fromkeys(
        ("student.max_skipped_steps", "discriminator.max_skipped_steps"),
        "watchdog.max_skipped_steps holds for both models",
    ),
    **dict.fromkeys(
        ("warmup.reset_optimizer", "adversarial.reset_optimizer"),
        "gad.reset_optimizer holds for all stages",
    ),
    **dict.fromkeys(
        [
            f"watchdog.{phase}_s"
            for phase in ("swap", "discriminator", "student", "save", "between")
        ],
        "watchdog.phase_s bounds each phase but the start and sampling",
    ),
    **dict.fromkeys(
        ("rollout.top_p", "rollout.top_k"),
        "the student is trained as the whole distribution, and sampled from it; leave this key out",
    ),
    "rollout.max_batch_size": "max_total_tokens bounds the memory of the embedded engine, and rows"
    " join as it has room; leave this key out",
    "sglang.health_interval_s": "servers are asked six times in health_timeout_s; leave this key"
    " out",
}


def removed_keys(section: str) -> set[str]:
    """Return the keys of a section that are refused by name."""
    return {key.rpartition(".")[2] for key in REMOVED if key.startswith(f"{section}.")}
