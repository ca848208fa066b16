"""All mutants, by subject."""

from tests.mutants import (
    data,
    ends,
    engines,
    evaluation,
    faults,
    inputs,
    layouts,
    losses,
    models,
    stages,
    training,
)
from tests.mutants.mutant import Mutant

SUBJECTS: dict[str, tuple[Mutant, ...]] = {
    "Advantages": losses.ADVANTAGE_MUTANTS,
    "The reward": losses.REWARD_MUTANTS,
    "The student's loss": losses.POLICY_MUTANTS,
    "The discriminator's loss": losses.DISCRIMINATOR_MUTANTS,
    "Divergence from a teacher": losses.DIVERGENCE_MUTANTS,
    "Options of the algorithm": stages.OPTION_MUTANTS,
    "Rewards and updates": stages.REWARD_MUTANTS,
    "Turns of the two models": stages.TURN_MUTANTS,
    "Begin and end of a stage": ends.END_MUTANTS,
    "Going on from a checkpoint": ends.RESUME_MUTANTS,
    "Trouble from outside": faults.FAULT_MUTANTS,
    "Order of the data": data.ORDER_MUTANTS,
    "Masks and rows": data.MASK_MUTANTS,
    "Text and tokens": data.TEXT_MUTANTS,
    "What a run reads": inputs.INPUT_MUTANTS,
    "Draws of the engine": engines.DRAW_MUTANTS,
    "Decoding": engines.DECODING_MUTANTS,
    "One queue over all servers": engines.SHARING_MUTANTS,
    "Weights of the engine": engines.WEIGHT_MUTANTS,
    "Reported numbers": engines.NUMBER_MUTANTS,
    "The network": models.NETWORK_MUTANTS,
    "The heads": models.HEAD_MUTANTS,
    "An optimizer step": training.STEP_MUTANTS,
    "Steps that are skipped": training.SKIP_MUTANTS,
    "AdamW and its rate": training.ADAMW_MUTANTS,
    "Borrowed weights": training.MEMORY_MUTANTS,
    "More than one rank": layouts.LAYOUT_MUTANTS,
    "Evaluation": evaluation.EVALUATION_MUTANTS,
}
MUTANTS = tuple(mutant for mutants in SUBJECTS.values() for mutant in mutants)
