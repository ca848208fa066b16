"""Keeps secrets out of the configuration, which is written into files and shown.

No message shows what it refuses.
"""

import re
from collections.abc import Iterator
from typing import Any

from megatron_gad.checks.resume import settings
from megatron_gad.config.run import RunConfig
from megatron_gad.environment import ENDPOINT_KEY, SERVER_KEY, secret

# Arguments of an SGLang server that are secrets.
SECRET_ARGUMENTS = ("api_key", "admin_api_key", "ssl_keyfile_password")
# User and password in a URL, which may stand in the middle of a text.
USER_IN_URL = re.compile(r"(?<=://)[^/\s@]*@")
HOW_TO_GIVE = (
    f"give the key of servers at sglang.urls in the environment variable {SERVER_KEY}, or in a "
    f"file that {SERVER_KEY}_FILE names, and that of a judge likewise in {ENDPOINT_KEY}"
)


def masked(text: str) -> str:
    """Return a text without the users and passwords of its URLs."""
    return USER_IN_URL.sub("***@", text)


def check_secrets(config: RunConfig) -> Iterator[str]:
    """Yield what would write a secret down, and what is wrong with one that is given."""
    for name in config.sglang.server_args:
        if name.replace("-", "_") in SECRET_ARGUMENTS:
            yield (
                f"sglang.server_args sets {name}, which would be shown in files and in the list of "
                f"processes; leave it out: servers of the run listen on 127.0.0.1; {HOW_TO_GIVE}"
            )
    for key, value in settings(config).items():
        for text in _texts(value):
            if USER_IN_URL.search(text):
                yield (
                    f"{key} = {masked(text)!r} names a user or a password, which would be written "
                    f"into files; leave both out; {HOW_TO_GIVE}"
                )
    for name in (SERVER_KEY, *((ENDPOINT_KEY,) if config.evaluation.judge_url else ())):
        try:
            secret(name)
        except ValueError as error:
            yield str(error)


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts that a plain value holds."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))
