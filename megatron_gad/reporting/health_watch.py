"""The rules of health, applied while a run goes on."""

import logging
from pathlib import Path

from megatron_gad.config.health import HealthConfig
from megatron_gad.errors import RunStoppedError
from megatron_gad.reporting.health import NUM_RECENT, Finding, assess
from megatron_gad.reporting.run_record import read_run
from megatron_gad.runtime.run_folder import ask_first_rank
from megatron_gad.storage import lost_folder
from megatron_gad.training.checkpoint_files import describe_newest
from megatron_gad.training.parallel import Parallel

logger = logging.getLogger(__name__)


class HealthWatch:
    """Warns of each rule that begins to say "act", and stops the run by those that may stop it.

    It reads what the run has written, so that a run that was resumed is judged as a whole.
    """

    def __init__(self, folder: Path, config: HealthConfig, parallel: Parallel) -> None:
        self._folder = folder
        self._config = config
        self._parallel = parallel
        self._told: set[str] = set()

    def look(self, step_in_stage: int) -> None:
        """Apply the rules, after every ``NUM_RECENT`` steps of a stage. All ranks call it.

        Raises RunStoppedError, alike on all ranks, with evidence and remedy.
        """
        if step_in_stage % NUM_RECENT:
            return
        reason = ask_first_rank(self._parallel, self._apply)
        if reason:
            raise RunStoppedError(reason)

    def _apply(self) -> str:
        """Warn of what is new; return why the run has to stop, or an empty string."""
        if not self._folder.is_dir():
            raise lost_folder(self._folder)
        found = [
            finding
            for finding in assess(read_run(self._folder))
            if finding.level == "act" and finding.name not in self._config.ignore
        ]
        for finding in found:
            if finding.name not in self._told:
                logger.warning("health: %s", _evidence(finding))
        self._told = {finding.name for finding in found}
        deadly = [finding for finding in found if finding.name in self._config.stop]
        if not deadly:
            return ""
        names = ", ".join(finding.name for finding in deadly)
        newest = describe_newest(self._folder)
        newest = describe_newest(self._folder)
        return (
            f"the run is stopped, as health.stop says ({names}): "
            f"{'; '.join(map(_evidence, deadly))} {newest[0].upper()}{newest[1:]}; "
            "the same command goes on from a checkpoint, or begins anew. Leave the rule out of "
            "health.stop to go on as it is"
        )


def _evidence(finding: Finding) -> str:
    """Return a finding's rule, number, healthy range and advice."""
    return (
        f"{finding.title} ({finding.name}): {finding.value}; healthy is {finding.healthy}. "
        f"{finding.advice}"
    )
