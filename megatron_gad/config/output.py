"""What a run writes, and where."""

from dataclasses import dataclass
from typing import Literal

ModelName = Literal["student", "discriminator"]


@dataclass(frozen=True)
class CheckpointConfig:
    """Where a run lives and what it keeps.

    Attributes:
        save: the run directory; everything the run writes is in it. All hosts of a run share it.
        load: run directory to resume from; default: ``save``, if it holds a checkpoint.
        ckpt_step: iteration of ``load`` to go on from; not set: its newest.
        load_optim: take the optimizers' states of ``load`` too; if not, they begin anew at its
            weights.
        finetune: take only the student's weights of ``load``, and begin at the first stage. A run
            that has checkpoints of its own goes on from those, whatever ``load``, ckpt_step,
            load_optim and ``finetune`` say.
        override_config: settings, such as "data.path", that may differ from the checkpoint's though
            they change what the run means.
        verify_checkpoint: compare the files of a checkpoint or an exported model with their digests
            before they are loaded. Sizes are always compared.
        async_save: write checkpoints from copies in host memory while the next steps are taken,
            except at the end of a stage. One is published once it is whole; the next waits for it.
        save_interval: steps between checkpoints; 0: only at the end of each stage.
        keep_last: number of newest checkpoints to keep; 0: all. An older one is deleted after the
            next is written, so the disk has to hold one more.
        export: models written as Hugging Face folders ``<save>/<model>_hf`` when the run ends.
        export_stages: also write ``<save>/<model>_hf_<stage>`` when each stage ends.
    """

    save: str = "runs/run"
    load: str = ""
    ckpt_step: int | None = None
    load_optim: bool = True
    finetune: bool = False
    override_config: tuple[str, ...] = ()
    verify_checkpoint: bool = True
    async_save: bool = False
    save_interval: int = 50
    keep_last: int = 2
    export: tuple[ModelName, ...] = ("student",)
    export_stages: bool = False


@dataclass(frozen=True)
class LogConfig:
    """What a run writes down.

    Attributes:
        log_interval: steps between log lines.
        samples_interval: steps between files of samples; 0: none.
        tensorboard: write event files.
        wandb_project: also log to Weights & Biases; empty: no.
    """

    log_interval: int = 1
    samples_interval: int = 10
    tensorboard: bool = True
    wandb_project: str = ""

    def writes_samples(self, step_in_stage: int) -> bool:
        """Return whether a step writes samples: the first of a stage, and every so many."""
        interval = self.samples_interval
        return bool(interval) and (step_in_stage == 1 or step_in_stage % interval == 0)
