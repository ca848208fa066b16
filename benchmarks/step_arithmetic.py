"""What a measured step is compared with: sizes, floating point operations, peaks, planned bytes."""

from dataclasses import asdict, dataclass
from typing import Any

from megatron_gad.planning.devices import DEVICES, Device
from megatron_gad.planning.layout import Layout
from megatron_gad.planning.memory import (
    Microbatch,
    Precision,
    activation_bytes,
    engine_weight_bytes,
    kv_bytes_per_token,
    model_state,
    precision_of,
)
from megatron_gad.planning.shapes import ModelShape


def _qwen2(layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, tied: bool) -> dict:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
        "vocab_size": 151_936,
        "max_position_embeddings": 32_768,
    }


# Those of Qwen2.5, and one that any machine runs.
SHAPES: dict[str, dict[str, Any]] = {
    "0.5b": _qwen2(24, 896, 4864, 14, 2, tied=True),
    "1.5b": _qwen2(28, 1536, 8960, 12, 2, tied=True),
    "7b": _qwen2(28, 3584, 18944, 28, 4, tied=False) | {"vocab_size": 152_064},
    "tiny": _qwen2(2, 64, 128, 4, 2, tied=True) | {"vocab_size": 512},
}


TITLES = "model", "precision", "phase", "s", "tokens/s", "MFU", "GB/s", "peak GiB", "plan GiB"
HEADER = "\n".join(f"| {' | '.join(row)} |" for row in (TITLES, ["---"] * len(TITLES)))


@dataclass(frozen=True)
class Rows:
    """The rows of one step; all are equally long. micro: of one forward."""

    count: int
    micro: int
    prompt: int
    response: int

    @property
    def tokens(self) -> int:
        """Return the tokens of the step."""
        return self.count * (self.prompt + self.response)


@dataclass(frozen=True)
class Measured:
    """One line of the table. What cannot be known here is None.

    seconds: median of the repeats; None where problem says why there is none. tokens: of one
    repeat. flops: of one repeat, what the mathematics needs, without recomputation. nbytes: moved.
    peak_bytes: most memory allocated on the device; planned_bytes: what the planner expects of
    that.
    """

    shape: str
    precision: str
    phase: str
    seconds: float | None
    tokens: int = 0
    flops: float = 0.0
    nbytes: int = 0
    peak_bytes: int | None = None
    planned_bytes: int | None = None
    problem: str = ""


def training_flops(shape: ModelShape, rows: Rows, is_scorer: bool) -> float:
    """Return the operations of forward and backward over the rows.

    Three times the forward's: 2 for each multiplied weight and token, 4 a for each pair of tokens
    that attend, a being the width of all query heads; the output layer sees response tokens only.
    """
    head = 0 if is_scorer else shape.vocab_size * shape.hidden_size
    weights = shape.multiplied_parameters(is_scorer) - (shape.hidden_size if is_scorer else head)
    length = rows.prompt + rows.response
    pairs = rows.count * length * (length + 1) / 2
    attention = 4 * shape.num_layers * shape.num_heads * shape.head_dim * pairs
    output = 2 * (head * rows.response * rows.count if head else shape.hidden_size * rows.tokens)
    return 3 * (2 * weights * rows.tokens + output + attention)


def planned_training_bytes(
    shape: ModelShape, rows: Rows, precision: str, is_scorer: bool, chunk: int
) -> int:
    """Return the planner's bytes while one model trains and is alone on the device."""
    layout, kind = Layout(), _kind(precision)
    count = -(-rows.count // rows.micro)
    length = rows.prompt + rows.response
    batch = Microbatch(rows.micro * length, count, chunk=0 if is_scorer else chunk)
    state = model_state(shape, layout, kind, is_scorer).total
    return state + activation_bytes(shape, layout, kind, batch)


def planned_engine_bytes(shape: ModelShape, precision: str, tokens: int) -> int:
    """Return the planner's bytes while the engine samples beside a student at rest.

    tokens: whose keys and values the engine holds.
    """
    layout, kind = Layout(), _kind(precision)
    engine = engine_weight_bytes(shape, layout, kind) + tokens * kv_bytes_per_token(
        shape, layout, kind
    )
    return model_state(shape, layout, kind, is_scorer=False).total + engine


def _kind(precision: str) -> Precision:
    return precision_of(bf16=precision != "fp32", fp8="fp8" in precision)


def device_named(name: str) -> Device | None:
    """Return the published figures of a GPU, None where there are none of its type."""
    for device in DEVICES.values():
        if device.name.split("-")[0].upper() in name.upper().replace("-", " ").split():
            return device
    return None


def utilisation(measured: Measured, device: Device | None) -> float | None:
    """Return the MFU: the share of the device's dense peak that the mathematics took."""
    if device is None or not measured.flops or measured.seconds is None:
        return None
    peak = device.fp8_flops if "fp8" in measured.precision else device.bf16_flops
    return measured.flops / measured.seconds / peak if peak else None


def as_row(line: Measured, device: Device | None) -> str:
    """Return a line as a row of the Markdown table; a dash where nothing is known."""
    mfu, seconds = utilisation(line, device), line.seconds
    cells = (
        line.shape,
        line.precision,
        line.phase,
        line.problem if seconds is None else f"{seconds:.4g}",
        f"{line.tokens / seconds:,.0f}" if line.tokens and seconds else "-",
        "-" if mfu is None else f"{100 * mfu:.1f} %",
        f"{line.nbytes / seconds / 1e9:.2f}" if line.nbytes and seconds else "-",
        "-" if line.peak_bytes is None else f"{line.peak_bytes / 2**30:.2f}",
        "-" if line.planned_bytes is None else f"{line.planned_bytes / 2**30:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def as_record(line: Measured, device: Device | None) -> dict[str, Any]:
    """Return a line for the JSON file, with what follows from it."""
    rate = line.tokens / line.seconds if line.seconds else None
    return asdict(line) | {"mfu": utilisation(line, device), "tokens_per_second": rate}
