r"""Collect a teacher's responses from any OpenAI-compatible chat endpoint.

    python tools/collect_teacher.py --prompts prompts.jsonl --out train.jsonl \
        --base-url https://api.openai.com/v1 --model gpt-5-chat-latest

The key comes from OPENAI_API_KEY. A run that was killed goes on where it was when the same command
is given again. docs/collecting.md has more. Exit status: 0 every row has a response, 1 some have
none, 2 bad input or a file that cannot be written, 130 interrupted.
"""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm.contrib.logging import logging_redirect_tqdm

from megatron_gad.data.teacher.collect import CollectReport, collect
from megatron_gad.data.teacher.config import CollectConfig

logger = logging.getLogger("megatron_gad.collect_teacher")

USUAL_KEY = "OPENAI_API_KEY"


@dataclass(frozen=True)
class Arguments:
    """Files and endpoint.

    Attributes:
        prompts: file of rows with "content" (messages, or a string) and, if you like, "id".
        out: JSONL to write or to continue.
        api_key_env: name of the environment variable with the key; several URLs need one for each.
        endpoint: whom to ask, and how.
    """

    prompts: Path
    out: Path
    endpoint: Annotated[CollectConfig, tyro.conf.arg(name="")]
    api_key_env: tuple[str, ...] = (USUAL_KEY,)


def main() -> int:
    """Collect, say what happened in one message, and return the exit status."""
    arguments = tyro.cli(Arguments, description=__doc__)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("megatron_gad").setLevel(logging.INFO)
    try:
        keys = _keys(arguments.api_key_env, arguments.endpoint)
        with logging_redirect_tqdm():
            report = collect(arguments.prompts, arguments.out, arguments.endpoint, keys)
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        return 2
    except KeyboardInterrupt:
        logger.error("interrupted; the same command goes on from the rows in %s", arguments.out)
        return 130
    _say(report, arguments.out)
    return 0 if report.is_complete else 1


def _keys(names: Sequence[str], endpoint: CollectConfig) -> list[str]:
    """Return the keys that the environment holds under some names."""
    count = endpoint.num_teachers
    fitting = (count,) if len(set(endpoint.base_url)) > 1 else (1, count)
    if len(names) not in fitting:
        raise ValueError(
            f"api_key_env names {len(names)} keys for {count} teachers: give"
            f" {' or '.join(map(str, fitting))}, so that no endpoint sees the key of another"
        )
    unset = [name for name in names if name != USUAL_KEY and not os.environ.get(name)]
    if unset:
        raise ValueError(f"api_key_env: {', '.join(unset)} is not set in the environment")
    return [os.environ.get(name, "") for name in names]


def _say(report: CollectReport, out: Path) -> None:
    """Log the summary, and one error if rows are missing."""
    retried = ", ".join(f"{count} x {reason}" for reason, count in report.retries.items())
    logger.info(
        "%s: %d of %d rows have a response (%d from before, %d cut by the length cap);"
        " retries: %s; tokens: %d in, %d out; cost %.4f; %.1f s",
        out,
        report.num_recovered + report.num_collected,
        report.num_rows,
        report.num_recovered,
        report.num_truncated,
        retried or "none",
        report.prompt_tokens,
        report.completion_tokens,
        report.cost,
        report.seconds,
    )
    if report.is_complete:
        return
    logger.error(
        "%d failed, %d empty, %d not asked, %d bad prompts%s; reasons are in %s.failed.jsonl; the"
        " same command asks again",
        report.num_failed,
        report.num_empty,
        report.num_not_asked,
        report.num_bad_prompts,
        f" (stopped: {report.stopped})" if report.stopped else "",
        out,
    )


if __name__ == "__main__":
    sys.exit(main())
