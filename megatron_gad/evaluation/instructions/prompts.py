"""Checkable instructions as the student of a run is asked to follow them."""

from collections.abc import Sequence

from megatron_gad.data.chat import ChatCodec
from megatron_gad.data.forms import with_system
from megatron_gad.types import Instructed, Prompt


def instruction_prompts(
    instructions: Sequence[Instructed], codec: ChatCodec, system_prompt: str
) -> list[Prompt]:
    """Return a prompt for each instruction; its index is the instruction's place.

    system_prompt: the system turn of all; empty: none.

    Raises ValueError: the chat template refuses one, or one has more than the codec's
    ``max_prompt_tokens``.
    """
    prompts: list[Prompt] = []
    for place, each in enumerate(instructions):
        messages = with_system(({"role": "user", "content": each.prompt},), system_prompt)
        prompts.append(Prompt(place, tuple(messages), "", codec.encode_prompt(messages), ()))
    limit = codec.max_prompt_tokens
    too_long = [prompt for prompt in prompts if len(prompt.ids) > limit]
    if too_long:
        longest = max(len(prompt.ids) for prompt in too_long)
        raise ValueError(
            f"{len(too_long)} of {len(prompts)} prompts are longer than data.max_prompt_tokens = "
            f"{limit}, the first is {instructions[too_long[0].index].id!r}; the longest has "
            f"{longest} tokens: raise the limit, or leave them out"
        )
    return prompts
