"""Requests for plans of real models with the paper's batch and the lengths of chat."""

from typing import Any

from megatron_gad.planning.devices import DEVICES
from megatron_gad.planning.layout import Layout
from megatron_gad.planning.memory import precision_of
from megatron_gad.planning.request import Request
from megatron_gad.planning.shapes import ModelShape, shape_from_config
from megatron_gad.planning.work import Lengths, StageWork


def qwen(width: int, ffn: int, num_layers: int, num_heads: int, num_kv_heads: int) -> ModelShape:
    """A Qwen2.5 of the larger sizes, whose output layer is not tied."""
    return shape_from_config(
        {
            "model_type": "qwen2",
            "hidden_size": width,
            "intermediate_size": ffn,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_kv_heads,
            "vocab_size": 152_064,
        }
    )


QWEN = {
    "7B": qwen(3584, 18944, 28, 28, 4),
    "14B": qwen(5120, 13824, 48, 40, 8),
    "32B": qwen(5120, 27648, 64, 40, 8),
}
ROWS = 256 * 8
ADVERSARIAL = StageWork(
    kind="adversarial",
    is_game=True,
    has_reference=True,
    num_prompts=256,
    group_size=8,
    num_samples=ROWS,
    student_forwards=ROWS,
    student_trained=ROWS,
    discriminator_forwards=0,
    discriminator_trained=ROWS + 256,
)
TP4 = Layout(tensor=4, data=2, sequence_parallel=True, distributed_optimizer=True)


def make_request(model: str, device: str = "h100-80g", num_gpus: int = 8, **more: Any) -> Request:
    """A step of 256 prompts x 8 samples, 150 and 400 tokens long, in bf16."""
    shape = more.pop("shape", None) or QWEN[model]
    fields: dict[str, Any] = {
        "stages": (ADVERSARIAL,),
        "lengths": Lengths(150, 400, 2048, 1536),
        "precision": precision_of(bf16=True, fp8=False),
    }
    return Request(shape, shape, DEVICES[device], num_gpus, **(fields | more))
