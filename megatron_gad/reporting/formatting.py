"""Numbers and durations as a reader wants to see them."""

import math


def format_number(value: float, unit: str = "") -> str:
    """Return a number as text: a share as per cent, a large number with its thousands named."""
    if unit == "%":
        return f"{100 * value:.1f} %"
    if 10_000 <= abs(value) < 1e15:
        power = int(math.log10(abs(value)) // 3)
        return f"{value / 1000**power:.3g} {' kMGT'[power]}"
    return f"{value:.4g}" if abs(value) >= 1 else f"{value:.3g}"


def format_duration(seconds: float) -> str:
    """Return seconds as "12.3 s", "4 min 05 s" or "7 h 02 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    return f"{int(seconds) // 3600} h {int(seconds) // 60 % 60:02d} min"
