"""One thread per process: the tests' tensors are small, and results must not depend on the machine's cores."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

pytest.register_assert_rewrite("harness")  # of tests/faults: what it compares is shown, as it is in a test
