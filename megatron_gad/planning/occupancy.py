"""Who is on the device in which turn, and whether all of it fits."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from megatron_gad.planning.devices import usable_bytes
from megatron_gad.planning.layout import Layout
from megatron_gad.planning.memory import (
    Microbatch,
    ModelState,
    PhaseMemory,
    activation_bytes,
    comparison_bytes,
    engine_weight_bytes,
    forward_bytes,
    head_bytes,
    kv_bytes_per_token,
    model_state,
)
from megatron_gad.planning.request import (
    Grouping,
    Request,
    discriminator_rows,
    microbatch_rows,
    microbatch_tokens,
    num_microbatches,
    student_rows,
    swap_bytes,
)

# Who may leave the device when it is not at work. An engine that leaves takes its cache along.
ENGINE_CHOICES = ((), ("engine",))
MODEL_CHOICES = ((), ("discriminator",), ("student",), ("discriminator", "student"))


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one GPU under one layout and residency.

    leaves: roles that leave the device while they are not at work.
    cache_tokens: tokens whose keys and values fit into one copy of the engine.
    student, discriminator: states while they train; host_bytes: pinned, for one GPU.
    engine_host_bytes: of the copy of the weights that one rank of each copy of the models keeps.
    teacher_weights: of a teacher, which come in for its turn.
    """

    leaves: frozenset[str]
    phases: tuple[PhaseMemory, ...]
    cache_tokens: int
    student: ModelState
    discriminator: ModelState | None
    host_bytes: int
    engine_host_bytes: int = 0
    teacher_weights: int = 0

    @property
    def missing(self) -> int:
        """Return the bytes that the worst phase lacks; 0 where everything fits."""
        return max(phase.missing for phase in self.phases)


def choices(request: Request) -> tuple[frozenset[str], ...]:
    """Return every choice of who leaves that a run has, from nobody to everybody."""
    if not (request.has_engine or request.has_discriminator):
        return (frozenset(),)
    may_leave = request.has_engine and request.engine.is_here and request.engine_rests
    engine = ENGINE_CHOICES if may_leave else ENGINE_CHOICES[:1]
    present = {"student", "discriminator"} if request.has_discriminator else {"student"}
    models = [each for each in MODEL_CHOICES if present.issuperset(each)]
    return tuple(frozenset((*m, *e)) for e in engine for m in models)


def memory_plans(request: Request, layout: Layout) -> Iterable[MemoryPlan]:
    """Yield the memory of a layout for every choice of who leaves."""
    precision = request.precision
    student = model_state(request.student, layout, precision, is_scorer=False)
    discriminator = None
    if request.has_discriminator:
        own = layout.of_discriminator
        discriminator = model_state(request.discriminator, own, precision, is_scorer=True)
    activations = _activations(request, layout)
    for leaves in choices(request):
        yield _memory_plan(request, layout, leaves, (student, discriminator), activations)


def _activations(request: Request, layout: Layout) -> dict[str, int]:
    """Return the activations of the student's and the discriminator's largest microbatch."""
    own, found = layout.of_discriminator, {"student": 0, "discriminator": 0, "teacher": 0}
    for stage in request.stages:
        batch = _largest_microbatch(
            request, layout, student_rows(stage), stage.student_trained, request.logprob_chunk_size
        )
        needed = activation_bytes(request.student, layout, request.precision, batch)
        if request.teacher is not None and stage.teacher_forwards:
            chunk = request.logprob_chunk_size
            needed += comparison_bytes(request.teacher, layout, chunk)
            found["teacher"] = forward_bytes(request.teacher, layout, request.precision, batch)
        found["student"] = max(found["student"], needed)
        if stage.uses_discriminator:
            rows, trained = discriminator_rows(request, stage), stage.discriminator_trained
            batch = _largest_microbatch(request, own, rows, trained)
            needed = activation_bytes(request.discriminator, own, request.precision, batch)
            found["discriminator"] = max(found["discriminator"], needed)
    return found


@dataclass(frozen=True)
class _TeacherBytes:
    """What a teacher takes on a device, and on the host between its turns.

    weights: in its turn. head: the rows of its output layer, in the student's.
    """

    weights: int = 0
    head: int = 0


def _teacher_bytes(request: Request, layout: Layout) -> _TeacherBytes:
    if request.teacher is None:
        return _TeacherBytes()
    # It never computes in FP8.
    precision = replace(request.precision, working=0)
    state = model_state(request.teacher, layout, precision, is_scorer=False)
    return _TeacherBytes(state.weights, head_bytes(request.teacher, layout, precision))


def _largest_microbatch(
    request: Request, layout: Layout, rows: Grouping, trained: float, chunk: int = 0
) -> Microbatch:
    """Return a model's largest microbatch.

    layout: of the model. trained: rows of a step over all data ranks. chunk: tokens whose logits
    are held at once.
    """
    lengths = request.lengths
    each = microbatch_rows(request, layout, rows, lengths.max_prompt, lengths.max_response)
    return Microbatch(
        tokens=microbatch_tokens(request, layout, rows),
        count=num_microbatches(trained, each, layout.data),
        chunk=chunk,
        is_joined=request.joins_attention,
    )


def _memory_plan(
    request: Request,
    layout: Layout,
    leaves: frozenset[str],
    states: tuple[ModelState, ModelState | None],
    activations: dict[str, int],
) -> MemoryPlan:
    """Put every role into the phases that it lives in; the KV cache gets what is left."""
    student, discriminator = states
    engine = engine_weight_bytes(request.student, layout, request.precision)
    engine = engine if request.engine.is_here else 0
    teacher = _teacher_bytes(request, layout)
    phases = _phases(request, leaves, (student, discriminator, engine, teacher), activations)
    cache = cache_tokens = 0
    if request.has_engine:
        cache, cache_tokens = _cache(request, layout, leaves, phases)
    usable, keeps_weights = (
        usable_bytes(request.device, request.assume),
        request.engine.keeps_weights,
    )
    # The reference, and the student's own weights while it is lent them.
    host = 2 * student.weights if request.has_reference else 0
    host += student.optimizer if "student" in leaves else 0
    host += student.weights if "student" in leaves and not request.has_reference else 0
    host += teacher.weights + teacher.head
    host += discriminator.kept if discriminator and "discriminator" in leaves else 0
    return MemoryPlan(
        leaves=leaves,
        phases=tuple(
            PhaseMemory(
                name,
                roles | ({"kv_cache": cache} if _has_cache(request, name, leaves) else {}),
                usable,
            )
            for name, roles in phases.items()
        ),
        cache_tokens=cache_tokens,
        student=student,
        discriminator=discriminator,
        host_bytes=host,
        engine_host_bytes=swap_bytes(request) if request.has_engine and keeps_weights else 0,
        teacher_weights=teacher.weights,
    )


def _phases(
    request: Request,
    leaves: frozenset[str],
    roles: tuple[ModelState, ModelState | None, int, _TeacherBytes],
    activations: dict[str, int],
) -> dict[str, dict[str, int]]:
    """Return the bytes of every phase by role, the KV cache apart.

    roles: states of student and discriminator, bytes of the engine's weights and of a teacher.
    """
    student, discriminator, engine, teacher = roles
    resting = {"student": student.kept}
    resting |= {"discriminator": discriminator.kept} if discriminator else {}
    resting |= {"engine": engine} if request.has_engine else {}
    stays = {role: 0 if role in leaves else size for role, size in resting.items()}
    # A student that leaves shows the engine its weights when the rest is gone already, and keeps
    # them for the comparison with the engine after the first samples.
    sampling = {"student": student.weights if "student" in leaves else student.kept}
    sampling["engine"] = engine
    phases: dict[str, dict[str, int]] = {}
    if request.has_engine:
        phases["swap"] = stays | sampling | {"swap_buffers": 2 * request.assume.bucket_bytes}
        phases["rollout"] = stays | sampling
    if discriminator:
        working = {"discriminator": discriminator.total}
        phases["discriminator"] = stays | working | {"activations": activations["discriminator"]}
    working = {"student": student.total, "activations": activations["student"]}
    if teacher.weights:
        own = {"teacher": teacher.weights, "activations": activations["teacher"]}
        phases["teacher"] = stays | own
        working["teacher"] = teacher.head
    phases["student"] = stays | working
    return phases


def _has_cache(request: Request, phase: str, leaves: frozenset[str]) -> bool:
    if not request.engine.is_here:
        return False
    # What samples for the next step keeps its cache while this one trains.
    stays = request.engine.kind == "servers" or not request.engine_rests
    return phase == "rollout" or (stays and "engine" not in leaves)


def _cache(
    request: Request,
    layout: Layout,
    leaves: frozenset[str],
    phases: dict[str, dict[str, int]],
) -> tuple[int, int]:
    """Return the bytes of the KV cache on one GPU and the tokens that fit into them.

    Where its size is not given it takes what the phases that it lives through leave free: at least
    one row at its longest, whether that fits or not, and at most all rows of a replica at their
    longest.
    """
    each = kv_bytes_per_token(request.student, layout, request.precision)
    if request.engine.cache_tokens is not None:
        return request.engine.cache_tokens * each, request.engine.cache_tokens
    usable = usable_bytes(request.device, request.assume)
    lived = [roles for name, roles in phases.items() if _has_cache(request, name, leaves)]
    # Elsewhere an engine has such a device for itself.
    alone = usable - engine_weight_bytes(request.student, layout, request.precision)
    free = min((usable - sum(roles.values()) for roles in lived), default=alone)
    most_rows = max(-(-int(stage.num_samples) // layout.num_engines) for stage in request.stages)
    longest = request.lengths.max_row
    tokens = min(max(free // each, longest), max(1, most_rows) * longest)
    return tokens * each, tokens
