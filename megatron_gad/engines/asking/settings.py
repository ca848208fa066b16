"""What a user may say of an endpoint: its URL, and JSON for its requests."""

import json
from urllib.parse import urlsplit

from megatron_gad.environment import ENDPOINT_KEY

# Of every call, behind the URL of the endpoint.
ROUTE = "/chat/completions"


def address_problem(url: str) -> str:
    """Return what is wrong with an endpoint's URL, after its name and " = "; empty if nothing is.

    What follows a "?" is often a key, and no message shows it.
    """
    shown, mark, _ = url.partition(next((mark for mark in "?#" if mark in url), "?"))
    if not _is_address(url):
        return f"{shown!r} is no address; give one like https://host/v1"
    if mark:
        return (
            f"{shown!r} and more from {mark!r} on, to which no path of a call can be added, and "
            f"which would be written into files; leave that out; a key is given in {ENDPOINT_KEY}"
        )
    if url.rstrip("/").endswith(ROUTE):
        return f"{shown!r} ends in {ROUTE}, which is added to it; leave that out"
    return ""


def is_json_object(text: str) -> bool:
    """Return whether a text is JSON of an object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is no number
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)
