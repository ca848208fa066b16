"""Models of a run as Hugging Face folders."""

from pathlib import Path

from megatron_gad.config.output import ModelName
from megatron_gad.errors import RunStoppedError
from megatron_gad.models.hf_folder import save_hf_folder
from megatron_gad.runtime.run import Run


def export_model(run: Run, name: ModelName, folder: Path) -> None:
    """Write a model, with the tokenizer that it reads with. All ranks call it.

    Raises RunStoppedError, and writes nothing, if its weights are not finite.
    """
    trainer = run.student if name == "student" else run.discriminator
    weights = trainer.hf_weights()
    with run.turn("export"):
        if not trainer.has_finite_weights():
            raise RunStoppedError(
                f"{folder.name} is not written, because the weights are not finite; go on from "
                "the newest checkpoint with a lower learning rate or a smaller clip_grad"
            )
        if run.parallel.is_writer:
            source, stop_ids = run.codecs.student_folder, run.codec.stop_ids
            if name == "discriminator" and run.codecs.scorer is not None:
                source, stop_ids = run.codecs.scorer_folder, ()
            save_hf_folder(weights, trainer.hf_config, source, folder, stop_ids)
        else:
            for _ in weights:
                pass
