"""Log-probabilities of given ids from an SGLang server that serves another model than the run's."""

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from megatron_gad.engines.sglang.client import CallRefused, Json, ServerFailed, SGLangClient

# A server queues what it cannot take at once.
CONCURRENT = 64
ATTEMPTS = 3
# Texts whose ids are compared, and how many ids whose texts are.
TEXTS = (
    "The answer is 42, isn't it? (1,234.5)",
    "Größe, naïve café; 東京, привет 🙂",
    "def add(a, b):\n    return a + b\n\n\n# white  space\tcounts",
)
COMPARED_IDS = 512

logger = logging.getLogger(__name__)


class TeacherServer:
    """Asks a server what a model says of token ids, at temperature 1."""

    def __init__(self, url: str, timeout_s: float) -> None:
        """url: http://host:port. timeout_s: the longest wait for one answer."""
        self._client = SGLangClient(url, timeout_s)
        self._url = url

    def logprobs(self, rows: Sequence[tuple[Sequence[int], int]]) -> list[list[float]]:
        """Return the log-probability of every response token of every row.

        rows: (ids of prompt and response, number of the prompt's).

        Raises:
            ServerFailed: a row was not answered, or not with numbers, in three attempts.
            CallRefused: the server does not accept a row.
        """
        with ThreadPoolExecutor(min(CONCURRENT, max(1, len(rows)))) as pool:
            return list(pool.map(self._logprobs, rows))

    def find_difference(self, tokenizer: Any) -> str:
        """Return how the server's tokenizer differs from the student's; empty if it does not.

        tokenizer: of transformers.

        Raises:
            ValueError: the server cannot be asked.
        """
        try:
            for text in TEXTS:
                own = tokenizer(text, add_special_tokens=False)["input_ids"]
                asked = {"prompt": text, "add_special_tokens": False}
                theirs = self._client.ask("/tokenize", asked).get("tokens")
                if theirs != own:
                    return f"it makes other ids of the text {text!r} than the student's"
            ids = _ids_to_compare(tokenizer)
            asked = {"tokens": [[each] for each in ids], "skip_special_tokens": False}
            given = self._client.ask("/detokenize", asked).get("text")
            ours = [tokenizer.decode([each]) for each in ids]
            if not isinstance(given, list) or len(given) != len(ids):
                raise ServerFailed(f"{self._url}/detokenize answers {str(given)[:200]}")
            for number, theirs, own in zip(ids, given, ours, strict=True):
                if theirs != own:
                    return f"id {number} is {theirs!r} there and {own!r} here"
        except (ServerFailed, CallRefused) as error:
            raise ValueError(
                f"the server of white_box.teacher = {self._url!r} cannot be asked for its "
                f"tokenizer, which has to be compared with the student's: {error}; start it "
                "without --skip-tokenizer-init"
            ) from error
        return ""

    def _logprobs(self, row: tuple[Sequence[int], int]) -> list[float]:
        ids, num_prompt = row
        if len(ids) == num_prompt:
            return []
        return _tried(lambda: self._ask(ids, num_prompt))

    def _ask(self, ids: Sequence[int], num_prompt: int) -> list[float]:
        # The first entry is of the token at logprob_start_len, and is always empty.
        answer = self._client.ask(
            "/generate",
            {
                "input_ids": list(ids),
                "sampling_params": {"temperature": 1.0, "max_new_tokens": 0},
                "return_logprob": True,
                "logprob_start_len": num_prompt - 1,
            },
        )
        return read_logprobs(answer, ids[num_prompt:])


def read_logprobs(answer: Json, wanted: Sequence[int]) -> list[float]:
    """Return the log-probabilities in an answer.

    wanted: the ids that they have to be of.

    Raises:
        ServerFailed: they are of others, are not there, or are no numbers.
    """
    try:
        entries = answer["meta_info"]["input_token_logprobs"][1:]
        ids = [int(entry[1]) for entry in entries]
        logprobs = [float(entry[0]) for entry in entries]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ServerFailed(f"broken answer ({error!r}): {str(answer)[:300]}") from error
    if ids != list(wanted):
        raise ServerFailed(f"log-probabilities of {len(ids)} other ids than the {len(wanted)} sent")
    if not all(math.isfinite(each) and each <= 0 for each in logprobs):
        raise ServerFailed("log-probabilities that are positive or not finite")
    return logprobs


def _ids_to_compare(tokenizer: Any) -> list[int]:
    """Return ids from all over the vocabulary, and those of all added tokens."""
    known = sorted(tokenizer.get_vocab().values())
    step = max(1, len(known) // COMPARED_IDS)
    return sorted({*islice(known, 0, None, step), *tokenizer.added_tokens_decoder})


def _tried(call: Callable[[], list[float]]) -> list[float]:
    for attempt in range(1, ATTEMPTS):
        try:
            return call()
        except ServerFailed as error:
            logger.warning("%s: attempt %d of %d", error, attempt + 1, ATTEMPTS)
    return call()
