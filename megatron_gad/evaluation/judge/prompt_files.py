"""The judge's prompts: text files with places for the conversation and the answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, TemplateError

PACKAGED = Path(__file__).with_name("prompts")
# File -> what is put into it.
PLACES: Mapping[str, tuple[str, ...]] = {
    "reference.txt": ("conversation",),
    "rating.txt": ("conversation", "reference", "answer"),
    "pairwise.txt": ("conversation", "answer_a", "answer_b"),
}


class JudgePrompts:
    """The prompts of a folder; those that it does not hold are the package's."""

    def __init__(self, folder: Path | None = None) -> None:
        """Read and try all prompts.

        Raises ValueError: there is no such folder, it holds no prompt, or a prompt that is no
        template, or that leaves a part of what is judged out.
        """
        if folder is not None and not any((folder / name).is_file() for name in PLACES):
            raise ValueError(
                f"judge_prompts = {str(folder)!r} holds none of {', '.join(PLACES)}; copy those "
                f"that you want to change from {PACKAGED}"
            )
        environment = Environment(undefined=StrictUndefined, autoescape=False)
        self._templates: dict[str, Any] = {}
        for name, places in PLACES.items():
            own = (folder or PACKAGED) / name
            path = own if own.is_file() else PACKAGED / name
            try:
                template = environment.from_string(path.read_text(encoding="utf-8"))
                written = template.render({place: f"<<{place}>>" for place in places})
            except (TemplateError, UnicodeDecodeError) as error:
                raise ValueError(
                    f"{path} is no template of a judge's prompt ({error}); it may hold "
                    + " and ".join(f"{{{{ {place} }}}}" for place in places)
                ) from error
            left_out = [place for place in places if f"<<{place}>>" not in written]
            if left_out:
                raise ValueError(f"{path} leaves out {{{{ {left_out[0]} }}}}; put it in")
            self._templates[name] = template

    def write(self, name: str, **parts: str) -> str:
        """Return a prompt with what is judged in its places."""
        return self._templates[name].render(parts)


def conversation_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return a conversation as the judge reads it: one user message as it is, turns with names."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in messages)
