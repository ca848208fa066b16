"""The chat template of a tokenizer: its only caller, and what it does with a conversation."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import jinja2.ext
import jinja2.meta
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from megatron_gad.data.reasoning import tags_of
from megatron_gad.types import Message

DEFAULT, WITH_TOOLS = "default", "tool_use"  # names of templates of a tokenizer that has several
MARKER = "RESPONSE-MARKER"  # stands for the text of a turn; occurs in no template
# Templates that put today's date into the system turn would give other prompt ids tomorrow, and so
# break a resumed run. This is the day that the Llama 3 templates fall back to by themselves.
TEMPLATE_DATE = "26 Jul 2024"
CLOCK = "strftime_now"  # a function that transformers gives to templates
CODES = ("%d", "%-d", "%m", "%-m", "%B", "%b", "%Y", "%y", "%A", "%a", "%H", "%M", "%S")
# What every template is given, whatever the settings.
GIVEN = {
    *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"),
    *("raise_exception", CLOCK, "tokenize", "chat_template"),
}
SWITCH = "enable_thinking"  # of Qwen3 and others after it; true unless it is given
CALLS = ("tool_calls", "function_call")  # keys of a turn that say something beside its content
GENERATION_TAG = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")  # of transformers, not of jinja

Opening = Literal["none", "open", "closed"]


class ChatTemplate:
    """Writes conversations as the model is to read them.

    arguments: what the template is given beside the conversation.
    opening: what it writes of a block of reasoning where the response begins: none of it, its
        beginning, or an empty one.
    opening_space: the white space that it writes after the beginning.
    tags: what stands around the reasoning of the student.
    unused_switch: the argument that would keep the model from reasoning; empty if it has none, or
        it is given.
    """

    def __init__(self, tokenizer: Any, arguments: Mapping[str, Any] | None = None) -> None:
        """Raises ValueError for arguments that the template never reads."""
        self._tokenizer = tokenizer
        arguments = dict(arguments or {})
        read = template_variables(tokenizer)
        self._check_arguments(arguments, read)
        self.unused_switch = SWITCH if SWITCH in read and SWITCH not in arguments else ""
        self._arguments = {"date_string": TEMPLATE_DATE} | arguments
        self._texts = _with_fixed_clock(tokenizer.chat_template)
        self._losses: dict[tuple[Any, ...], str] = {}
        asked = self.render([{"role": "user", "content": MARKER}])
        _, _, before_response = asked.rpartition(MARKER)
        self.tags = tags_of(str(tokenizer.chat_template))
        _, is_opened, opened = before_response.rpartition(self.tags.open)
        self.opening: Opening = "none"
        if is_opened:
            self.opening = "closed" if self.tags.close in opened else "open"
        self.opening_space = opened if self.opening == "open" and opened.isspace() else ""

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] = (),
        add_generation_prompt: bool = True,
    ) -> str:
        """Return the conversation as the template writes it.

        tools: definitions of the functions that the model may call.

        Raises ValueError, with the template's words, when it refuses the conversation.
        """
        try:
            return self._tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                chat_template=self._text(has_tools=bool(tools)),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self._arguments,
            )
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the chat template refuses the conversation: {error}") from error

    def _text(self, has_tools: bool) -> str:
        """Return the template for a conversation; of several, that which transformers takes."""
        name = WITH_TOOLS if has_tools and WITH_TOOLS in self._texts else DEFAULT
        if name not in self._texts:
            raise ValueError(
                f"the tokenizer has chat templates named {', '.join(self._texts)}, and none named "
                f"{DEFAULT!r}; name one of them so"
            )
        return self._texts[name]

    def find_loss(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> str:
        """Return what of a conversation the template does not write, empty if it writes all.

        It is found by rendering with and without, once for each kind of conversation. What becomes
        of earlier responses is the template's business: many leave their reasoning out.
        """
        kind = (
            bool(tools),
            *((each["role"], bool(each["content"]), *sorted(each)) for each in messages),
        )
        if kind not in self._losses:
            self._losses[kind] = next(self._find_losses(messages, tools), "")
        return self._losses[kind]

    def _find_losses(self, messages: Sequence[Message], tools: Sequence[Any]) -> Iterator[str]:
        whole = self.render(messages, tools)
        if tools and self._gives(whole, messages, ()):
            yield "the chat template does not write the row's tools; use a model that calls tools"
        for number, message in enumerate(messages):

            def gives_with(other: Message, number: int = number) -> bool:
                changed = [*messages[:number], other, *messages[number + 1 :]]
                return self._gives(whole, changed, tools)

            for key in CALLS:
                if message.get(key) and gives_with({k: v for k, v in message.items() if k != key}):
                    yield (
                        f"the chat template does not write {key!r} of message {number + 1}; use a "
                        "model that calls tools, or leave such rows out"
                    )
            is_written = message["role"] != "assistant" and message["content"]
            if is_written and gives_with({**message, "content": MARKER}):
                yield (
                    f"the chat template does not write message {number + 1}, of role "
                    f"{message['role']!r}; use a model whose template does, or leave such turns out"
                )

    def _gives(self, whole: str, messages: Sequence[Message], tools: Sequence[Any]) -> bool:
        """Return whether another conversation is written the same."""
        try:
            return self.render(messages, tools) == whole
        except ValueError:
            return False

    def _check_arguments(self, arguments: Mapping[str, Any], variables: set[str]) -> None:
        own = GIVEN | set(self._tokenizer.special_tokens_map)
        read = variables - own
        for name, value in arguments.items():
            if value in ("true", "false"):
                raise ValueError(
                    f"data.chat_template_kwargs.{name} = {value!r} is text, which a template takes "
                    f"for true; write {value} in the file, or {value.title()} as a flag"
                )
            if name in own:
                raise ValueError(
                    f"data.chat_template_kwargs has {name!r}, which is set from elsewhere; leave "
                    "it out"
                )
            if name not in read:
                raise ValueError(
                    f"data.chat_template_kwargs has {name!r}, which the student's chat template "
                    f"never reads; it reads {', '.join(sorted(read)) or 'none'}"
                )


def template_variables(tokenizer: Any) -> set[str]:
    """Return the names that a tokenizer's chat template looks up and does not set itself.

    Raises ValueError if it is not valid jinja.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    written = tokenizer.chat_template
    texts: list[str] = [*written.values()] if isinstance(written, dict) else [written]
    names: set[str] = set()
    for text in texts:
        try:
            parsed = environment.parse(GENERATION_TAG.sub("", text))
        except TemplateError as error:
            raise ValueError(f"the chat template is not valid jinja: {error}") from error
        names |= jinja2.meta.find_undeclared_variables(parsed)
    return names


def _with_fixed_clock(written: str | Mapping[str, str]) -> dict[str, str]:
    """Return templates by their names, each with a clock of its own that stands still."""
    day = datetime.strptime(TEMPLATE_DATE, "%d %b %Y")
    replaced = "".join(f" | replace('{code}', '{day.strftime(code)}')" for code in CODES)
    clock = f"{{% macro {CLOCK}(form) %}}{{{{ form{replaced} }}}}{{% endmacro +%}}"
    named = {DEFAULT: written} if isinstance(written, str) else written
    return {name: clock + text if CLOCK in text else text for name, text in named.items()}
