"""Keys that are refused by name, each with what to do instead."""

OF_OPTIMIZER = (
    *("min_lr", "lr_decay_style", "lr_warmup_steps", "weight_decay"),
    *("adam_beta1", "adam_beta2", "clip_grad"),
)
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
        "moments are float32; use_distributed_optimizer shards them. Leave this key out",
    ),
    **dict.fromkeys(
        (
            "compute.optimizer_cpu_offload",
            "compute.optimizer_offload_fraction",
            "compute.use_precision_aware_optimizer",
        ),
        "optimizer states leave the GPU while other models work, if schedule.leaves has the model;"
        " use_distributed_optimizer shards them. Leave this key out",
    ),
    "compute.fp8_param_gather": "weights are held in bfloat16; leave this key out",
    "compute.main_params_dtype": "main weights are float32; leave this key out",
    **dict.fromkeys(
        [f"{model}.{key}" for model in ("student", "discriminator") for key in OF_OPTIMIZER],
        "[optimizer] has it, for both models",
    ),
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
            for phase in ("swap", "rollout", "discriminator", "student", "save", "between")
        ],
        "watchdog.phase_s bounds each phase but the start",
    ),
    "parallel.distributed_timeout_minutes": "collectives wait five minutes longer than"
    " watchdog.phase_s; leave this key out",
    **dict.fromkeys(
        ("rollout.top_p", "rollout.top_k"),
        "the student is trained as the whole distribution, and sampled from it; leave this key out",
    ),
    "rollout.max_batch_size": "max_total_tokens bounds the memory of the embedded engine, and rows"
    " join as it has room; leave this key out",
    **dict.fromkeys(
        (
            "discriminator.context_parallel_size",
            "discriminator.expert_model_parallel_size",
            "discriminator.expert_tensor_parallel_size",
        ),
        "the student's holds for both models; leave this key out",
    ),
    "discriminator.virtual_pipeline_model_parallel_size": "it is the student's if both have as many"
    " pipeline ranks; leave this key out",
    "discriminator.sequence_parallel": "it is the student's if both have as many tensor-parallel"
    " ranks, else on from 2 ranks on; leave this key out",
    "gad.reference": "the reference is the student as it was when the stage began; leave this key"
    " out",
    "adversarial.discriminator_only_steps": "put a stage 'warmup' with train_student = false before"
    " this one",
    "adversarial.freeze_discriminator": "discriminator_interval = 0 freezes it",
    "warmup.refuse_above": "the run stops if the loss stays nearer to chance than to stop_below;"
    " leave this key out",
    "sglang.log_folder": "the servers' output is in logs/ of the run directory",
    "sglang.weight_folder": "with weight_transport = 'disk', servers at sglang.urls read from"
    " weights/ of the run directory, which they have to see at the same path",
    "sglang.max_restarts": "a server may fail three times in a row; leave this key out",
    "sglang.weight_timeout_s": "request_timeout_s bounds swaps of weights, too",
    "sglang.health_interval_s": "servers are asked six times in health_timeout_s; leave this key"
    " out",
}


def removed_keys(section: str) -> set[str]:
    """Return the keys of a section that are refused by name."""
    return {key.rpartition(".")[2] for key in REMOVED if key.startswith(f"{section}.")}
