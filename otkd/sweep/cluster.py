"""Ray here or on a cluster: join it, see that every node can take part, count what it has room for.

Nodes train where the driver's `runs/` is seen, or else in a folder of their own with a storage in between. Code reaches
them with the job; packages and data do not.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import otkd
from otkd.core.errors import OtkdError
from otkd.core.layout import Layout
from otkd.core.storage import Storage, scratch
from otkd.sweep.runner import HERE

log = logging.getLogger("otkd")

KNOCK_S = 5.0
"""How long a cluster may take to accept a connection."""
LOOK_S = 120.0
"""How long the nodes may take to say what they see; a first task unpacks the code."""
WAYS_OUT = (
    "Where a cluster asks for a token, RAY_AUTH_MODE=token has to be set here, too (docs/cluster.md). "
    "Without --address otkd runs on this machine."
)
PASSED_ON = ("OTKD_", "FSSPEC_", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE")
"""Beginnings of environment variables that workers get from the driver; secrets are the nodes' own business."""
RELAY_S = 2.0
"""Seconds between rounds of a `Relay`."""
NEEDED = ("torch", "torchvision", "numpy", "pydantic", "pyarrow", "PIL", "scipy", "sklearn", "ot", "numba", "fsspec")
"""Modules that a node has to have."""
TYPE = "accelerator_type:"
"""Begins the resource by which Ray names a node's kind of accelerator."""
CLAIM = 0.001
"""How much of that resource a worker claims: enough to be placed there, little enough for any number of workers."""


def connect(address: str) -> None:
    """Start Ray here, or join the cluster at an address (`auto` for one that was started on this machine).

    Raises:
        OtkdError: nothing answers there, or it is no cluster that this driver can work with.
    """
    if address == HERE:  # anyone who reaches Ray can run code; it listens on 127.0.0.1
        _init(address, include_dashboard=False, object_store_memory=2**28)
        return
    if address.startswith("ray://"):
        raise OtkdError(
            f"--address {address}: a driver by Ray's client hears too little of its workers. Run otkd on a machine of "
            "the cluster, with --address auto, or submit it as a job: docs/cluster.md shows how."
        )
    _knock(_resolved(address), "this machine's address" if address == "auto" else address)
    variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    # by the name that it was given: Ray shows its token unasked to a cluster that it finds itself, and to no other
    _init(address, runtime_env={"py_modules": [otkd.__path__[0]], "excludes": ["__pycache__"], "env_vars": variables})


def leave() -> None:
    """Leave the cluster, or end the one here.

    While Ray goes, it ends this process at once, without a word, when one of its objects is freed, by whatever thread.
    So what waits for Python's collector goes first, and the collector waits.
    """
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if collects:
            gc.enable()


def _init(address: str, **options: Any) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # Ray raises its own, and plain RuntimeErrors
        ray.shutdown()
        reason = " ".join(str(error).split())
        raise OtkdError(f"Ray at {address!r}: {reason} {WAYS_OUT}") from error


def _resolved(address: str) -> str:
    """`host:port` of an address."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        found = canonicalize_bootstrap_address(address)
    except ValueError:
        found = address  # its form is looked at next
    if found is None:
        raise OtkdError(
            "--address auto: no Ray cluster was started on this machine. `ray start --head` starts one; "
            "`ray start --address=HOST:6379` makes this machine a node of one; docs/cluster.md shows how."
        )
    return str(found)


def _knock(place: str, named: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = place.rpartition(":")
    if not port.isdigit():
        raise OtkdError(f"--address {named}: that is not of the form HOST:PORT; `ray start --head` says which it is.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise OtkdError(
            f"no Ray cluster answers at {named} ({error}). Is it running, and may this machine reach it? "
            "Without --address (and RAY_ADDRESS) otkd runs on this machine."
        ) from error


class Wanted(NamedTuple):
    """What a node has to see."""

    runs: str | None
    """The driver's `runs/`; None where a storage stands between."""
    token: str
    """Name of a file in `runs` that the driver has written."""
    storage: str | None
    owner: str
    """Whose folder it is that the node keeps for that storage."""
    data_dir: str | None


class Sight(NamedTuple):
    """What a node sees."""

    host: str
    lacks: tuple[str, ...]
    torch: str
    """Version."""


def look(wanted: Wanted, node: str) -> Sight:
    """What this machine has of what is wanted; leaves an answer beside the driver's token."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    lacks = [f"packages are missing: {', '.join(missing)}"] if missing else []
    if wanted.runs is not None:
        lacks += _runs_problem(Path(wanted.runs), wanted.token, node)
    if wanted.storage is not None:
        lacks += _storage_problem(wanted.storage, wanted.owner)
    if wanted.data_dir is not None and not Path(wanted.data_dir).is_dir():
        lacks.append(f"there is no data folder {wanted.data_dir}")
    return Sight(socket.gethostname(), tuple(lacks), _version("torch"))


def _runs_problem(runs: Path, token: str, node: str) -> list[str]:
    if not (runs / token).exists():
        return [f"{runs} is not the driver's"]
    try:
        (runs / f"{token}.{node}").touch()
    except OSError as error:
        return [f"{runs} cannot be written ({error.strerror})"]
    return []


def _storage_problem(storage: str, owner: str) -> list[str]:
    try:
        Storage(storage).probe()
        scratch(storage, owner).stop.unlink(missing_ok=True)  # asked of a driver that is gone
    except (OtkdError, OSError) as error:
        return [str(error)]
    return []


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def expect_fit(runs: Path, storage: str | None, owner: str, data_dir: Path | None) -> None:
    """See that every node can take part, before anything starts.

    Args:
        runs: the driver's `runs/`, which all nodes have to see where there is no storage.
        owner: as for `otkd.core.storage.scratch`.
        data_dir: the data folder, which all nodes have to see at the same path.

    Raises:
        OtkdError: names all nodes that cannot, and what each lacks.
    """
    token = f".token-{uuid4().hex}"
    where = None if storage else str(runs.resolve())
    wanted = Wanted(where, token, storage, owner, str(data_dir.resolve()) if data_dir else None)
    runs.mkdir(parents=True, exist_ok=True)
    (runs / token).touch()
    try:
        sights = _sights(wanted)
        lost = [node for node in sights if where and not sights[node].lacks and not (runs / f"{token}.{node}").exists()]
    finally:
        for path in runs.glob(f"{token}*"):
            path.unlink(missing_ok=True)
    _refuse(sights, lost, runs)
    _warn_of_versions(sights.values())


def _sights(wanted: Wanted) -> dict[str, Sight]:
    """Node → what it sees, of all nodes that have cores for workers."""
    remote = ray.remote(num_cpus=0, max_retries=0)(look)
    nodes = [node for node in alive() if node["Resources"].get("CPU", 0) > 0]
    asked = {
        node["NodeID"]: remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(wanted, node["NodeID"])
        for node in nodes
    }
    hosts, until = {node["NodeID"]: node["NodeManagerHostname"] for node in nodes}, time.monotonic() + LOOK_S
    return {node: _answer(hosts[node], answer, until) for node, answer in asked.items()}


def _answer(host: str, asked: Any, until: float) -> Sight:
    try:
        sight: Sight = ray.get(asked, timeout=max(until - time.monotonic(), 1.0))
        return sight
    except GetTimeoutError:
        return Sight(host, (f"no answer within {LOOK_S:g} s",), "")
    except RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Sight(host, (lines[-1],), "")


def _refuse(sights: dict[str, Sight], lost: Sequence[str], runs: Path) -> None:
    """Name every node that cannot take part."""
    problems = [f"{sight.host}: {'; '.join(sight.lacks)}" for sight in sights.values() if sight.lacks]
    problems += [f"{sights[node].host}: what it writes to {runs} does not arrive" for node in lost]
    if not problems:
        return
    lines = "".join(f"\n  {problem}" for problem in problems)
    raise OtkdError(
        f"{len(problems)} of {len(sights)} nodes cannot take part:{lines}\nAll nodes need the same packages, the data "
        "folder at the same path, and --runs on a path that all of them see, or a --storage. docs/cluster.md says more."
    )


def _warn_of_versions(sights: Iterable[Sight]) -> None:
    """Another torch is no obstacle, but its numbers may differ."""
    own = _version("torch")
    for sight in (sight for sight in sights if sight.torch != own):
        log.warning("%s has torch %s, this machine %s: results may differ in rounding", sight.host, sight.torch, own)


class Post:
    """Stands on a node whose trials lie in a folder of its own."""

    def __init__(self, storage: str, owner: str) -> None:
        self._layout = scratch(storage, owner)

    def beat(self, stop: bool) -> dict[str, int]:
        """Pass on whether to stop; returns when each trial here has last shown that it makes progress, in ns."""
        if stop:
            self._layout.root.mkdir(parents=True, exist_ok=True)
            self._layout.stop.touch()
        return {pulse.parent.name: pulse.stat().st_mtime_ns for pulse in self._layout.trials.glob("*/pulse")}


class Relay(threading.Thread):
    """Carries pulses from the nodes' own folders to the driver's `runs/`, and the wish to stop the other way."""

    def __init__(self, layout: Layout, storage: str, owner: str) -> None:
        super().__init__(name="otkd-relay", daemon=True)
        self._layout, self._asks = layout, (storage, owner)
        self._posts: dict[str, Any] = {}
        self._shown: dict[str, dict[str, int]] = {}
        """Node → the pulses that it has reported last."""
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(RELAY_S):
            try:
                self._go_round()
            except Exception as error:  # Ray is going, or changing; the next round sees
                log.debug("no word from the nodes: %s", error)

    def end(self) -> None:
        """Once Ray is about to go, with which nobody may talk then; what was carried here is removed."""
        self._over.set()
        self.join(2 * KNOCK_S)
        for node in list(self._shown):
            self._show(node, {})

    def _go_round(self) -> None:
        stop = self._layout.stop.exists()
        for node in (node["NodeID"] for node in alive()):
            self._posts[node] = self._posts.get(node) or self._post(node)
        asked = {node: post.beat.remote(stop) for node, post in self._posts.items()}
        for node, answer in asked.items():
            if self._over.is_set():
                return
            try:
                self._show(node, ray.get(answer, timeout=KNOCK_S))
            except RayError:  # that node is gone, or slow: somebody else is sent
                del self._posts[node]

    def _post(self, node: str) -> Any:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        return ray.remote(num_cpus=0, scheduling_strategy=there)(Post).remote(*self._asks)

    def _show(self, node: str, pulses: dict[str, int]) -> None:
        """Only what changes is a sign of life: a lost worker leaves a pulse on its node, while another goes on."""
        before = self._shown.get(node, {})
        for key, changed_ns in pulses.items():
            folder = self._layout.trial(key)
            if before.get(key) != changed_ns and not folder.done:
                folder.path.mkdir(parents=True, exist_ok=True)
                folder.pulse.touch()
                os.utime(folder.pulse, ns=(changed_ns, changed_ns))
        for key in before.keys() - pulses.keys():
            self._layout.trial(key).pulse.unlink(missing_ok=True)
        self._shown[node] = pulses


def alive() -> list[dict[str, Any]]:
    """Ray's own description of each node that is up."""
    return [node for node in ray.nodes() if node["Alive"]]


class Room(NamedTuple):
    """What there is for workers, node by node."""

    nodes: tuple[dict[str, float], ...]
    """Ray's resources of each node that may be used."""

    @property
    def total(self) -> dict[str, float]:
        """Over all nodes."""
        return {kind: sum(node.get(kind, 0) for node in self.nodes) for kind in ("CPU", "GPU")}

    @property
    def largest(self) -> float:
        """Cores of the node that has most."""
        return max(node.get("CPU", 0) for node in self.nodes)

    def fits(self, cpu: float, gpu: float) -> int:
        """How many workers with so many cores and GPUs fit on the nodes at once; none is spread over two."""
        asked = [(kind, amount) for kind, amount in (("CPU", cpu), ("GPU", gpu)) if amount]
        return sum(min(int(node.get(kind, 0) / amount + 1e-9) for kind, amount in asked) for node in self.nodes)


def room(gpu_type: str | None) -> Room:
    """What there is, on nodes with that type of GPU where one is asked for.

    Raises:
        OtkdError: there is no such GPU; names those there.
    """
    nodes = [node["Resources"] for node in alive() if node["Resources"].get("CPU", 0) > 0]
    if gpu_type is None:
        return Room(tuple(nodes))
    chosen = [node for node in nodes if TYPE + gpu_type in node]
    if not chosen:
        kinds = sorted({name.removeprefix(TYPE) for node in nodes for name in node if name.startswith(TYPE)})
        there = f"here are {', '.join(kinds)}" if kinds else "Ray knows of none here"
        raise OtkdError(f"resources.gpu_type: there is no GPU of type {gpu_type!r}; {there}. null takes any.")
    return Room(tuple(chosen))
