"""The SGLang engine: servers started here, or given by URL, behind the ``Engine`` protocol."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from megatron_gad.config.rollout import TOLERATED_FAILURES, SGLangConfig
from megatron_gad.engines.base import EngineWork, SamplingConfig
from megatron_gad.engines.sglang.buckets import Bucket
from megatron_gad.engines.sglang.checksums import HeadCounts, find_mismatches
from megatron_gad.engines.sglang.client import CallRefused, ServerFailed
from megatron_gad.engines.sglang.dispatch import Dispatch
from megatron_gad.engines.sglang.launch import (
    count_servers,
    server_arguments,
    server_environment,
    share_of_free,
    start_server,
    write_model_folder,
)
from megatron_gad.engines.sglang.replica import Limits, Replica
from megatron_gad.engines.sglang.requests import make_requests, read_answer
from megatron_gad.engines.sglang.server import ServerProcess
from megatron_gad.engines.sglang.sharing import Borrowing, Places
from megatron_gad.engines.sglang.site import ServerSite
from megatron_gad.engines.sglang.streaming import build_transport, stream_buckets
from megatron_gad.engines.sglang.weight_plan import WeightPlan
from megatron_gad.models.families import load_hf_config
from megatron_gad.types import Group, Prompt

logger = logging.getLogger(__name__)


class SGLangEngine:
    """Samples on SGLang servers; implements ``Engine``.

    Each response is one request with its own ``sampling_seed``. A server heeds it only with
    ``server_args.enable_deterministic_inference``; without, responses differ from run to run.
    """

    def __init__(
        self,
        config: SGLangConfig,
        hf_folder: str | Path,
        device: torch.device | str,
        dtype: torch.dtype,
        site: ServerSite | None = None,
    ) -> None:
        """Start the servers, all at once, and wait until they can take weights.

        hf_folder: only its config.json is read. site: where the servers run, and for whom.

        Raises ServerStartError, with the end of the server's log, where one does not come up.
        """
        self._config = config
        self._dtype = dtype
        self._device = torch.device(device)
        self._site = site or ServerSite()
        self._num_samplings = 0
        hf_config = load_hf_config(hf_folder)
        self._heads = HeadCounts(hf_config.num_attention_heads, hf_config.num_key_value_heads)
        self._plan = WeightPlan.of_folder(hf_folder, dtype, config.update_weight_buffer_size)
        self._work_folder = Path(tempfile.mkdtemp(prefix="megatron_gad_sglang_"))
        self._model_folder = write_model_folder(hf_config, self._work_folder / "model")
        self._transport = build_transport(config, self._device, self._site.weights)
        self._buckets: list[Bucket] = []
        self._version: int | None = None
        self._is_resting = False  # a server has taken its memory before it has any weights
        self._num_swaps = 0
        self._dispatch: Dispatch | None = None
        self._work = EngineWork()
        self._replicas: list[Replica] = []
        try:
            self._replicas += map(
                self._build_replica,
                range(len(config.urls) or count_servers(config, len(self._site.gpus))),
            )
            for replica in self._replicas:
                replica.wait_until_healthy()
        except BaseException:
            self.close()
            raise

    @property
    def replicas(self) -> Sequence[Replica]:
        """The servers."""
        return self._replicas

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Bring all weights to all servers; a server that fails meanwhile is started again.

        named_tensors: read to the end whatever happens, since other ranks may take part in it.

        Raises ValueError for weights that are not exactly the model's, and RuntimeError where a
        server refuses them, holds them otherwise than sent, naming tensor and rank, or fails too
        often.
        """
        self._version = None
        self._is_resting = False
        self._wait_until_recovered()
        self._buckets = []
        buckets = self._plan.buckets(named_tensors)
        failures = stream_buckets(buckets, self._replicas, self._keep)
        problems = self._plan.problems()
        if problems:
            raise ValueError(
                f"{len(problems)} problems with the weights given to the SGLang engine: "
                f"{'; '.join(problems[:20])}. Give every parameter of the model once, under its "
                "Hugging Face name; with tied embeddings leave lm_head.weight out."
            )
        if self._device.type == "cuda":  # the servers take their caches' room next
            torch.cuda.ipc_collect()
            torch.cuda.empty_cache()
        interval = self._config.verify_interval
        verifies = interval > 0 and self._num_swaps % interval == 0
        for replica in self._replicas:
            self._finish_load(replica, failures.get(replica), version, verifies)
        self._num_swaps += 1
        self._version = version

    def _finish_load(
        self, replica: Replica, error: Exception | None, version: int, verifies: bool
    ) -> None:
        """Let a server take what comes last, or start again where it failed. error: on the way."""
        try:
            if error is None:
                replica.end_load(version)
                if verifies:
                    self._verify(replica)
        except ServerFailed as failure:
            error = failure
        if isinstance(error, ServerFailed):
            replica.count_failed_load(error)
            replica.recover(error, self._loader(version, verifies))
        elif error is not None:
            raise error
        else:
            replica.num_failed_loads = 0

    def verify(self) -> None:
        """Compare what the servers hold with what was sent; RuntimeError names tensor and rank."""
        for replica in self._replicas:
            self._verify(replica)

    def _verify(self, replica: Replica) -> None:
        held = replica.api.checksums()
        if held is None:
            logger.warning(
                "the SGLang server at %s gives no checksums: nothing says that it holds the "
                "weights that were sent",
                replica.name,
            )
            return
        sent = {name: tensor for bucket in self._buckets for name, tensor in bucket.named}
        problems = find_mismatches(held, sent, self._heads, self._device)
        if problems:
            raise RuntimeError(
                f"after the weight swap the SGLang server at {replica.name} holds other weights "
                f"than were sent: {'; '.join(problems[:10])}"
            )

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> list[Group]:
        """Sample ``sampling.num_samples`` responses for each prompt, in the order given.

        Raises RuntimeError without loaded weights or when a server fails too often, and ValueError
        for a prompt without tokens.
        """
        version = self._version
        if version is None:
            raise RuntimeError("the engine has no weights: call load_weights before generate")
        for prompt in prompts:
            if not prompt.ids:
                raise ValueError(f"prompt {prompt.index} has no token ids; drop it before sampling")
        self._dispatch = Dispatch(
            self._replicas,
            list(make_requests(prompts, sampling)),
            read=partial(read_answer, sampling=sampling, version=version),
            load=self._loader(version),
            max_failures=TOLERATED_FAILURES,
            borrowing=self._borrowing(),
        )
        config = self._config
        try:
            rollouts = self._dispatch.run(
                config.max_running_requests, config.health_timeout_s / 6, config.health_timeout_s
            )
            self._work += self._dispatch.work()
        finally:
            self._dispatch = None
        size = sampling.num_samples
        return [
            Group(prompt, tuple(rollouts[number * size : (number + 1) * size]))
            for number, prompt in enumerate(prompts)
        ]

    def _borrowing(self) -> Borrowing | None:
        """Return the places of the next sampling, which all ranks count alike."""
        self._num_samplings += 1
        if self._site.sharing is None:
            return None
        places = Places(self._site.sharing, f"sampling {self._num_samplings}")
        return Borrowing(places, self._config.request_timeout_s)

    def take_work(self) -> EngineWork:
        """Return what was done since the last call."""
        work, self._work = self._work, EngineWork()
        return work

    def held_weights(self) -> Iterable[tuple[str, Tensor]]:
        """Return nothing: a server shows checksums only, which ``load_weights`` compares."""
        return ()

    def sleep(self) -> None:
        """Give the servers' device memory back, weights included; on a CPU nothing is freed.

        Servers without weights sleep too. Until the next ``load_weights``, again is harmless.
        Servers at URLs stay awake: their GPUs are not the trainer's, and one that was asleep when
        the run ended would be of no use to the next.
        """
        if self._is_resting:
            return
        self._version = None
        self._is_resting = True
        self._wait_until_recovered()
        for replica in () if self._config.urls else self._replicas:
            try:
                replica.sleep()
            except (ServerFailed, CallRefused) as error:
                logger.warning(
                    "SGLang server at %s ends instead of sleeping: %s", replica.name, error
                )
                replica.kill()  # its memory is free then, too; the next load starts it again

    def close(self) -> None:
        """End all servers of ours, and remove what was written for them.

        A thread that still samples gets an error, and servers at URLs stop its requests.
        """
        self._version = None
        dispatch = self._dispatch  # another thread may be done with it at any moment
        if dispatch is not None:
            dispatch.interrupt("the SGLang engine was closed while it sampled")
        for replica in self._replicas:
            replica.close()
        self._transport.close()
        self._buckets = []
        shutil.rmtree(self._work_folder, ignore_errors=True)

    def _wait_until_recovered(self) -> None:
        for replica in self._replicas:
            replica.wait_until_recovered()

    def _build_replica(self, number: int) -> Replica:
        config = self._config
        start: str | Callable[[], ServerProcess]
        start = config.urls[number] if config.urls else partial(self._start_server, number)
        limits = Limits(
            config.start_timeout_s,
            config.request_timeout_s,
            TOLERATED_FAILURES,
        )
        return Replica(start, self._transport, limits)

    def _start_server(self, number: int) -> ServerProcess:
        """Start one of our servers, with its share of what is free at this moment."""
        config = self._config
        arguments = server_arguments(config, self._device, self._dtype, number, self._site.gpus)
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            share = share_of_free(config.mem_fraction_static, free, total)
            arguments["mem_fraction_static"] = share
        environment = server_environment(config, os.environ, self._device)
        log = self._site.logs / f"sglang_{os.getpid()}_{number}.log"
        return start_server(config, self._model_folder, arguments, environment, log)

    def _keep(self, bucket: Bucket) -> None:
        """Keep the weights in host memory for servers that have to be started again."""
        self._buckets.append(bucket.on_host())

    def _loader(self, version: int, verifies: bool = False) -> Callable[[Replica], None]:
        """Return what gives a server the current weights, and compares them if asked to."""

        def load(replica: Replica) -> None:
            replica.load_all(self._buckets, version)
            if verifies:
                self._verify(replica)

        return load
