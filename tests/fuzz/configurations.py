"""Configurations of a tiny run in which some settings are wrong, extreme or unusual."""

import random
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tomli
import tomli_w

from megatron_gad.config.run import config_kind
from megatron_gad.config.stage_section import stage_kinds
from megatron_gad.config.toml import section_types
from tests.e2e.tiny_run import ROOT, assets
from tests.fuzz.outcome import problem_of, write

HUGE = 10**400  # more than a float holds
NUMBERS: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 3, 7, 64, 2**31, 2**53 + 1, 2**63, 2**64, HUGE, -HUGE),
    *(0.0, -0.0, 0.5, -0.5, 1.0, 1e-300, 5e-324, 1e300, float("nan"), float("inf"), -1e300),
)
TEXTS = (
    "", " ", "a", "a" * 5000, "a/" * 3000, "../..", "/", "/dev/null", "/proc/self/mem", "nonsense",
    "\u00fcn\u00efc\u00f6d\u00e9 \U0001f600", "\u202e", "\t\n", "\x7f", "~", "$HOME", "-1",
    "--save", "http://[::1", "http://host:99999", "file:///etc/passwd", "hub:", "hub:::",
    "owner/name@", "a/b@../../x", "nan", "{{ x }}", "'; drop",
)  # fmt: skip
# TOML that no value of a setting is.
OTHER_KINDS = ("[]", "[[]]", "{}", "{a = 1}", "1979-05-27T07:32:00Z", "true", "'text'", "[1, 'a']")
# No setting makes sense below 0 or without a size, but for a seed, and what goes on to others.
FREE = ("server_args", "chat_template_kwargs", "seed")

# What changes are made to: ranks, and settings of the tiny recipe.
SERVERS = {("rollout", "engine"): "sglang"}
PROFILES: tuple[tuple[int, dict[tuple[str, str], Any]], ...] = (
    (1, {}),
    (8, {}),
    (1, SERVERS | {("sglang", "urls"): ["http://127.0.0.1:1"]}),
    (2, SERVERS | {("sglang", "python"): sys.executable}),
    (4, {("parallel", "tensor_model_parallel_size"): 2, ("parallel", "sequence_parallel"): True}),
    (4, {("parallel", "pipeline_model_parallel_size"): 2, ("compute", "bf16"): True}),
    (2, {("parallel", "context_parallel_size"): 2, ("discriminator", "score"): "sum"}),
    (2, {("parallel", "use_distributed_optimizer"): True, ("gad", "tis_cap"): 2.0}),
)


@dataclass(frozen=True)
class Value:
    """What a setting is given.

    toml: as the file has it. is_mad: no setting makes sense with it.
    """

    toml: str
    is_mad: bool = False


def problem(number: int, folder: Path) -> str:
    """Try one configuration, made from its number; return what is wrong, empty if nothing is."""
    draw = random.Random(number)
    world_size, profile = draw.choice(PROFILES)
    changes = {name: Value(_toml_of(x)) for name, x in profile.items()} | _changes(draw)
    settings = _tiny_settings(folder) | changes
    kinds = [kind.name for kind in stage_kinds()]
    stages = draw.choice((kinds[:3], kinds, [name for name in kinds if draw.random() < 0.5]))
    unused = {"sglang", *kinds}.difference(stages)
    if draw.random() < 0.2:
        file, flags = ROOT / "examples/tiny/run.toml", ["--stages", *stages, *_as_flags(settings)]
        must_refuse = False  # a flag's text may be a number, and what follows one more of a list
    else:
        file, flags = write(folder / f"{number}.toml", _as_toml(stages, settings)), []
        must_refuse = any(each.is_mad and t not in unused for (t, _), each in settings.items())
    flags += ["--world-size", str(world_size), "--dry-run"]
    found = problem_of([str(file), *flags], must_refuse)
    changed = {f"{t}.{k}": value.toml[:200] for (t, k), value in changes.items()}
    return f"configuration {number} of {world_size}, {stages}: {changed}\n{found}" if found else ""


def _tiny_settings(folder: Path) -> dict[tuple[str, str], Value]:
    """Return the settings of the tiny recipe, with data and student."""
    tables = tomli.loads((ROOT / "examples/tiny/run.toml").read_text())
    tables["checkpoint"]["save"] = str(folder / "run")
    tables["data"] |= {"path": str(_few_rows(folder)), "eval_path": ""}
    tables["student"]["path"] = str(assets() / "student")
    return {
        (name, key): Value(_toml_of(value))
        for name, table in tables.items()
        if isinstance(table, dict)
        for key, value in table.items()
    }


def _few_rows(folder: Path) -> Path:
    file = folder / "few.jsonl"
    if not file.exists():
        lines = (assets() / "train.jsonl").read_text().splitlines(keepends=True)
        write(file, "".join(lines[:16]))
    return file


def _changes(draw: random.Random) -> dict[tuple[str, str], Value]:
    """Return some settings that are drawn at random; many alone, so that late rules are reached."""
    changes: dict[tuple[str, str], Value] = {}
    sections = section_types(config_kind())
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        table = draw.choice([*sections])
        key = draw.choice([field.name for field in fields(sections[table])])
        changes[table, key] = _value(draw, table, key, get_type_hints(sections[table])[key])
    return changes


def _value(draw: random.Random, table: str, key: str, hint: Any) -> Value:
    kinds = {hint, *get_args(hint)}
    if draw.random() < 0.1:
        return Value(draw.choice(OTHER_KINDS))
    if get_origin(hint) is tuple:
        texts = [draw.choice(TEXTS) for _ in range(draw.randint(0, 3))]
        return Value(_toml_of(texts))
    if bool in kinds and draw.random() < 0.8:
        return Value(draw.choice(("true", "false")))
    choices = [c for kind in kinds if get_origin(kind) is Literal for c in get_args(kind)]
    if choices and draw.random() < 0.8:
        return Value(_toml_of(draw.choice(choices)))
    if kinds & {int, float}:
        number = draw.choice(NUMBERS)
        if int in kinds and draw.random() < 0.7:
            number = draw.choice([n for n in NUMBERS if isinstance(n, int)])
        is_mad = not abs(number) <= 1e300 or number < 0
        return Value(_toml_of(number), is_mad and key not in FREE)
    return Value(_toml_of(draw.choice(TEXTS)))


def _toml_of(value: Any) -> str:
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")


def _as_toml(stages: list[str], settings: dict[tuple[str, str], Value]) -> str:
    tables: dict[str, list[str]] = {}
    for (table, key), value in settings.items():
        tables.setdefault(table, []).append(f"{key} = {value.toml}")
    lines = [f"stages = {_toml_of(stages)}"]
    for table, keys in tables.items():
        lines += [f"[{table}]", *keys]
    return "\n".join(lines) + "\n"


def _as_flags(settings: dict[tuple[str, str], Value]) -> list[str]:
    flat = ("parallel", "compute", "checkpoint", "log")
    flags: list[str] = []
    for (table, key), value in settings.items():
        name = key.replace("_", "-")
        parsed = tomli.loads(f"x = {value.toml}")["x"]
        words = parsed if isinstance(parsed, list) else [parsed]
        flag = f"--{name}" if table in flat else f"--{table}.{name}"
        if isinstance(parsed, bool):
            flags.append(flag if parsed else flag.replace(name, f"no-{name}"))
        else:
            flags += [flag, *(str(word).replace("\0", "") for word in words)]
    return flags
