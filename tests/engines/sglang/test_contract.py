"""Every call that is made exists, with every field that is sent, at both ends of the range.

The sources are read, not run: those of 0.5.16 in the wheel that ``tools/make_sglang_env.sh`` brings
along, those of 0.5.23 where it installs them. The calls are recorded as they are made.
"""

import ast
import zipfile
from functools import cache
from pathlib import Path

import pytest
import torch

from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.sglang.client import SGLangClient
from megatron_gad.engines.sglang.requests import make_requests
from megatron_gad.engines.sglang.versions import AFTER_WEIGHTS, BEFORE_WEIGHTS, ServerApi
from megatron_gad.engines.sglang.weight_plan import WeightPlan
from tests.engines.sglang.servers import MARKS, ROOT, make_prompts
from tests.recording_server import recording_server

pytestmark = MARKS
SESSIONS = {"/begin_weight_update", "/end_weight_update"}
ABSENT = {"0.5.16": SESSIONS, "0.5.23": set()}
ROUTES = "sglang/srt/entrypoints/http_server.py"
BODIES = "sglang/srt/managers/io_struct.py"
SAMPLING = "sglang/srt/sampling/sampling_params.py"


@cache
def tree(version: str, path: str) -> ast.Module:
    """Return the parsed file of a version."""
    environment = ROOT / ".venv-sglang"
    if version == "0.5.16":
        (wheel,) = (environment / "contract").glob("sglang-0.5.16-*.whl")
        return ast.parse(zipfile.ZipFile(wheel).read(path))
    (installed,) = environment.glob("lib/python3.*/site-packages")
    assert (installed / f"sglang-{version}.dist-info").is_dir()
    return ast.parse((installed / path).read_text())


def routes(version: str) -> dict[tuple[str, str], str]:
    """Return {(method, path): name of the class of the body, "" without one}."""
    found = {}
    for function in tree(version, ROUTES).body:
        if not isinstance(function, ast.AsyncFunctionDef):
            continue
        for decorator in function.decorator_list:
            if not isinstance(decorator, ast.Call) or not isinstance(decorator.func, ast.Attribute):
                continue
            kind = decorator.func.attr
            if kind in ("get", "post", "put", "api_route") and decorator.args:
                path = ast.literal_eval(decorator.args[0]) if is_text(decorator.args[0]) else ""
                listed = [k.value for k in decorator.keywords if k.arg == "methods"]
                methods = ast.literal_eval(listed[0]) if listed else [kind.upper()]
                found |= {(method, path): body_class(function) for method in methods}
    return found


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def body_class(function: ast.AsyncFunctionDef) -> str:
    """Return the class of the argument that holds the body: its name ends like a request's."""
    for argument in function.args.args:
        names = [n.id for n in ast.walk(argument) if isinstance(n, ast.Name)]
        names = [name for name in names if name.endswith(("ReqInput", "Req"))]
        if names:
            return names[0]
    return ""


def fields(version: str, path: str, name: str) -> set[str]:
    """Return the annotated fields of a class, or the arguments of its constructor; bases too."""
    classes = {
        node.name: node for node in tree(version, path).body if isinstance(node, ast.ClassDef)
    }
    found: set[str] = set()
    for node in classes[name].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
            found |= {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
    for base in classes[name].bases:
        if isinstance(base, ast.Name) and base.id in classes:
            found |= fields(version, path, base.id)
    return found


def calls() -> list[tuple[str, str, dict | None]]:
    """Return (method, path, body) of every call that training makes."""
    plan = WeightPlan({"x": torch.Size([2]), "y": torch.Size([3])}, torch.float32, 100)
    (bucket,) = plan.buckets([("x", torch.ones(2)), ("y", torch.ones(3))])
    with recording_server() as server:
        server.answers["/server_info"] = (200, {"tp_size": 1})
        client = SGLangClient(server.url, timeout_s=10)
        api = ServerApi(client)
        assert client.is_healthy(timeout_s=10)
        assert api.tensor_parallel_size() == 1
        api.begin_session()
        api.update_from_tensors(["x"])
        api.join_group("127.0.0.1", 1, 2, "name", "gloo")
        api.update_from_broadcast(bucket.layout, "name")
        api.leave_group("name")
        api.end_session()
        api.update_from_disk(Path("/x"))
        api.finish_update(3)
        api.release_memory()
        api.resume_memory(BEFORE_WEIGHTS)
        api.resume_memory(AFTER_WEIGHTS)
        api.checksums()
        api.generate(next(make_requests(make_prompts(1), SamplingConfig(stop_ids=(1,)))))
        api.abort("x")
        return server.calls


@pytest.mark.parametrize("version", ABSENT)
def test_every_call_and_every_field_of_it_exists(version):
    known = routes(version)
    made = calls()
    assert {path for method, path, _ in made if (method, path) not in known} == ABSENT[version]
    checked = set()
    for method, path, body in made:
        name = known.get((method, path), "")
        if body:
            assert set(body) <= fields(version, BODIES, name), (path, name)
            checked.add(name)
        if path == "/generate":
            assert body is not None
            assert set(body["sampling_params"]) <= fields(version, SAMPLING, "SamplingParams")
    assert checked >= {
        *("GenerateReqInput", "UpdateWeightsFromTensorReqInput", "InitWeightsUpdateGroupReqInput"),
        *("UpdateWeightsFromDistributedReqInput", "UpdateWeightFromDiskReqInput", "AbortReq"),
    }
