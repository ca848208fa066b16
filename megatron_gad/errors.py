"""The one exception that ends a run on purpose."""


class RunStoppedError(RuntimeError):
    """A run must not go on: its numbers are broken, or a rule of the user's says so.

    Raised on every rank alike. The message says what was seen and what to do; the newest
    checkpoint is whole and from before.
    """
