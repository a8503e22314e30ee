"""One thread per process: the tests' tensors are small, and results must not depend on the machine's cores."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

pytest.register_assert_rewrite("harness")  # of tests/faults: what it compares is shown, as it is in a test


@pytest.fixture(autouse=True, scope="module")
def surroundings() -> Iterator[None]:
    """No test leaves a store in the environment for those after it, as MLflow's `set_tracking_uri` does."""
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")
    before = {name: os.environ.get(name) for name in names}
    yield
    after = {name: os.environ.get(name) for name in names}
    for name, value in before.items():
        os.environ.pop(name, None)
        os.environ.update({} if value is None else {name: value})
    assert after == before
