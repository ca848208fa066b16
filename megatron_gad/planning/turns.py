"""The turns on the devices: who is at work in each, how it is timed, and which deadline it has.

This one list serves the run that takes the turns, the watchdog, the planner and the report.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from megatron_gad.config.run_control import Role

# What of a model is at work: its weights; its weights and optimizer states; gradients too.
Part = Literal["weights", "states", "all"]
TurnName = Literal[
    "build",
    "swap",
    "rollout",
    "compare",
    "score",
    "discriminator",
    "reference",
    "teacher",
    "student",
    "evaluate",
    "save_student",
    "save_discriminator",
    "export",
]


@dataclass(frozen=True)
class Turn:
    """One use of the devices.

    models: role -> the part of that model that is at work. Other models leave if they may.
    timer: the turn's seconds count as the metric time/<timer>_s; None: as the rest of the step.
    deadline: the key of [watchdog] that bounds the turn.
    uses_engine: the engine keeps its memory; in other turns it gives it back if it may leave.
    """

    name: TurnName
    models: Mapping[Role, Part]
    timer: str | None = None
    deadline: str = "phase_s"
    uses_engine: bool = False


TURNS: Mapping[TurnName, Turn] = {
    turn.name: turn
    for turn in (
        # The discriminator is made while no more of the student is there than its weights.
        Turn("build", {"student": "weights"}, deadline="start_s", uses_engine=True),
        Turn("swap", {"student": "weights"}, "swap", uses_engine=True),
        Turn("rollout", {"student": "weights"}, "rollout", uses_engine=True),
        Turn("compare", {"student": "weights"}, "student", uses_engine=True),
        Turn("score", {"discriminator": "weights"}, "discriminator"),
        Turn("discriminator", {"discriminator": "all"}, "discriminator"),
        # The reference borrows the student's buffers, which need not hold anything before.
        Turn("reference", {}, "student"),
        # A teacher moves by itself.
        Turn("teacher", {}, "student"),
        Turn("student", {"student": "all"}, "student"),
        Turn("evaluate", {"student": "weights"}),
        Turn("save_student", {"student": "states"}),
        Turn("save_discriminator", {"discriminator": "states"}),
        Turn("export", {}),
    )
}
# The timers of a step, in its order; "moves" is the time between turns.
TIMERS = (*dict.fromkeys(turn.timer for turn in TURNS.values() if turn.timer), "moves")
