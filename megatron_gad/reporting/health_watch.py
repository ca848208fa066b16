"""The rules of health, applied while a run goes on."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_gad.config.health import HealthConfig
from megatron_gad.errors import RunStoppedError
from megatron_gad.reporting.health import ACTIONS, HealthHistory, Look, actions_of
from megatron_gad.reporting.health_numbers import NUM_RECENT
from megatron_gad.reporting.run_record import read_run
from megatron_gad.runtime.run import Restraint
from megatron_gad.runtime.run_folder import ask_first_rank
from megatron_gad.storage import lost_folder
from megatron_gad.training.checkpoint_files import describe_newest
from megatron_gad.training.parallel import Parallel

logger = logging.getLogger(__name__)


class HealthWatch:
    """Warns of each rule that begins to say "act", and acts on those that may do more.

    It knows what the run has written before it was resumed, and is then told of every step.
    """

    def __init__(self, folder: Path, config: HealthConfig, parallel: Parallel) -> None:
        """Read the run so far, on the rank that writes it. All ranks call it."""
        self._folder = folder
        self._config = config
        self._parallel = parallel
        self._history = HealthHistory(config, {})
        if parallel.is_writer:
            run = read_run(folder)
            self._history = HealthHistory(config, run.config)
            for record in run.records:
                self._history.add(record)

    def restraint(self, step_in_stage: int) -> Restraint:
        """Return what is held back as the last look at this stage has it. All ranks call it."""
        if step_in_stage < NUM_RECENT:
            return Restraint()
        return ask_first_rank(self._parallel, lambda: self._restraint(self._history.newest))

    def look(self, record: Mapping[str, Any] | None, step_in_stage: int) -> Restraint | None:
        """Take a step and, after every ``NUM_RECENT`` of a stage, apply the rules.

        All ranks call it. Returns what is held back from here on, None if that stays as it is.

        record: as the step was written, on the rank that writes.

        Raises RunStoppedError, alike on all ranks, with evidence and remedy.
        """
        found = self._history.add(record) if record is not None else None
        if step_in_stage % NUM_RECENT:
            return None
        reason, restraint = ask_first_rank(self._parallel, lambda: self._apply(found))
        if reason:
            raise RunStoppedError(reason)
        return restraint

    def _apply(self, look: Look | None) -> tuple[str, Restraint]:
        """Tell what is new; return why the run has to stop, if it has to, and what is held back."""
        if not self._folder.is_dir():
            raise lost_folder(self._folder)
        if look is None:
            return "", self._restraint(self._history.newest)
        for finding in look.begun:
            actions = [ACTIONS[each] for each in actions_of(finding.name, self._config)]
            told = f" Therefore {' and '.join(actions)} (health)." if actions else ""
            logger.warning("health: %s%s", finding.evidence, told)
        for finding in look.over:
            logger.info("health: %s (%s) is over", finding.title, finding.name)
        return self._reason_to_stop(look), self._restraint(look)

    def _restraint(self, look: Look | None) -> Restraint:
        findings = look.findings if look else ()
        actions = {each for found in findings for each in actions_of(found.name, self._config)}
        return Restraint("pause_discriminator" in actions, "skip_student" in actions)

    def _reason_to_stop(self, look: Look) -> str:
        deadly = [each for each in look.findings if each.name in self._config.stop]
        if not deadly:
            return ""
        names = ", ".join(finding.name for finding in deadly)
        newest = describe_newest(self._folder)
        return (
            f"the run is stopped, as health.stop says ({names}): "
            f"{'; '.join(each.evidence for each in deadly)} {newest[0].upper()}{newest[1:]}; "
            "the same command goes on from a checkpoint, or begins anew. Leave the rule out of "
            "health.stop to go on as it is"
        )
