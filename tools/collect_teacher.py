r"""Collect a teacher's responses from any OpenAI-compatible chat endpoint.

    python tools/collect_teacher.py --prompts prompts.jsonl --out train.jsonl \
        --base-url https://api.openai.com/v1 --model gpt-5-chat-latest

The key comes from OPENAI_API_KEY. A run that was killed goes on where it was when the same command
is given again. Exit status: 0 every prompt has a response, 1 some have none, 2 bad input,
130 interrupted.
"""

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm.contrib.logging import logging_redirect_tqdm

from megatron_gad.data.teacher.collect import CollectConfig, CollectReport, collect

logger = logging.getLogger("megatron_gad.collect_teacher")


@dataclass(frozen=True)
class Arguments:
    """Files and endpoint.

    Attributes:
        prompts: JSONL; each row has "content" (messages, or a string) and may have an "id".
        out: JSONL to write or to continue.
        endpoint: whom to ask, and how.
    """

    prompts: Path
    out: Path
    endpoint: Annotated[CollectConfig, tyro.conf.arg(name="")]


def main() -> int:
    """Collect, say what happened in one message, and return the exit status."""
    arguments = tyro.cli(Arguments, description=__doc__)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("megatron_gad").setLevel(logging.INFO)
    key = os.environ.get("OPENAI_API_KEY", "")
    try:
        with logging_redirect_tqdm():
            report = collect(arguments.prompts, arguments.out, arguments.endpoint, key)
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        return 2
    except KeyboardInterrupt:
        logger.error("interrupted; the same command goes on from the rows in %s", arguments.out)
        return 130
    _say(report, arguments.out)
    return 0 if report.is_complete else 1


def _say(report: CollectReport, out: Path) -> None:
    """Log the summary, and one error if rows are missing."""
    retried = ", ".join(f"{count} x {reason}" for reason, count in report.retries.items())
    logger.info(
        "%s: %d of %d prompts have a response (%d from before, %d cut by the length cap);"
        " retries: %s; tokens: %d in, %d out; cost %.4f; %.1f s",
        out,
        report.num_recovered + report.num_collected,
        report.num_prompts,
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
        "%d failed, %d empty, %d not asked%s; reasons are in %s.failed.jsonl; the same command asks"
        " them again",
        report.num_failed,
        report.num_empty,
        report.num_not_asked,
        f" (stopped: {report.stopped})" if report.stopped else "",
        out,
    )


if __name__ == "__main__":
    sys.exit(main())
