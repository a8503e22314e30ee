import pytest
import yaml

from otkd.core.layout import Layout
from otkd.sweep.plan import make
from otkd.sweep.spec import load

BASE = {
    "name": "tiny",
    "question": "Does it run?",
    "data": {"name": "digits", "val": 0.2, "limit": 200},
    "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
    "train": {"epochs": 2, "batch_size": 32, "schedule": {"name": "constant"}},
    "methods": {"student": {"ce": 1}, "kd": {"ce": 0.1, "kd": {"weight": 0.9}}},
    "seeds": [0, 1],
}


@pytest.fixture
def sweep_file(tmp_path):
    """Write a sweep file: the base with some parts replaced."""

    def write(**parts):
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({**BASE, **parts}, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def plan(sweep_file):
    """A teacher, and two methods with two seeds."""
    return make(load(sweep_file()))


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "runs")


@pytest.fixture
def node():
    """A cluster of one core, so that one configuration is trained at a time."""
    from ray.cluster_utils import Cluster

    here = {"node_ip_address": "127.0.0.2"}  # nobody else reaches it
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **here})
    yield made
    made.shutdown()
