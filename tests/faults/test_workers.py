"""What happens to those who train: killed, or lost with their node.

A worker that hangs is in `tests/sweep/test_hung.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator

import pytest
from harness import Reference, Sweep, below, check, end, training


class Nodes:
    """A Ray cluster of three nodes with a core each, all on this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        about = {"num_cpus": 1, "object_store_memory": 2**27, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=about)
        self.others = [self.cluster.add_node(**about) for _ in range(2)]

    def workers(self) -> list[int]:
        """Processes that train, on nodes other than the driver's own."""
        return [pid for node in self.others for pid in training(raylet(node))]

    def at_work(self) -> list[object]:
        """Nodes, but for the driver's own, on which something trains."""
        return [node for node in self.others if training(raylet(node))]

    def kill(self, node: object) -> None:
        """All its processes at once, without a farewell."""
        for pid in (raylet(node), *below(raylet(node))):
            end(pid)
        self.cluster.remove_node(node, allow_graceful=False)
        self.others.remove(node)


def raylet(node: object) -> int:
    """The process above all others of a node."""
    return int(node.all_processes["raylet"][0].process.pid)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
    ):
        patch.setenv("RAY_TMPDIR", folder)  # short: it holds sockets
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Nodes()
        yield made
        made.cluster.shutdown()


def test_a_worker_is_killed(begin: Callable[..., Sweep], expected: Reference, nodes: Nodes) -> None:
    sweep = begin("--address", nodes.cluster.address).start().until_epochs(10)
    end(sweep.wait_until(nodes.workers)[0])
    assert sweep.wait() == 0, sweep.output
    assert "a worker was lost" in sweep.output
    check(sweep, expected)


def test_a_node_is_killed(begin: Callable[..., Sweep], expected: Reference, nodes: Nodes) -> None:
    sweep = begin("--address", nodes.cluster.address).start().until_epochs(10)
    nodes.kill(sweep.wait_until(nodes.at_work)[0])
    assert sweep.wait() == 0, sweep.output
    assert "a worker was lost" in sweep.output
    check(sweep, expected)
