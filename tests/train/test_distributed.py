"""Two and three processes compute what one does; `distributed_worker.py` holds the checks, which every process runs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from otkd.core.errors import OtkdError, TrialError
from otkd.core.output import ModelOutput
from otkd.train import distributed
from otkd.train.batchnorm import Moments, combine, synchronised
from otkd.train.distributed import Group, Place

WORKER = Path(__file__).with_name("distributed_worker.py")
CPU = torch.device("cpu")
IN_TWO = ("train_fitnet", "sums", "norm", "averages")
"""Under torchrun."""
IN_THREE = (
    *("train_kd", "train_fitnet", "train_transport", "train_rkd", "train_crd"),
    *("single_kd", "single_fitnet", "single_rkd"),
    *("gather", "gather_some", "gather_sizes", "sums", "buckets", "broadcast", "agreement", "means"),
    *("norm", "norm_single", "norm_kept", "averages", "death"),
)
"""Without torchrun; in batches of 2 images one process has none."""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(arguments, **variables):
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment = {**inherited, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def start_two(folder):
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    return [start([*torchrun, str(WORKER), str(folder), *IN_TWO])]


def start_three(folder):
    place = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [start([str(WORKER), str(folder), *IN_THREE], RANK=str(rank), **place) for rank in range(3)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What every process of both worlds found: (world, rank) → check → what went wrong."""
    folders = {world: tmp_path_factory.mktemp(f"world{world}") for world in (2, 3)}
    started = [*start_two(folders[2]), *start_three(folders[3])]
    try:
        said = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    files = {(world, rank): folders[world] / f"{rank}.json" for world in folders for rank in range(world)}
    assert all(file.exists() for file in files.values()), "\n".join(said)
    return {place: json.loads(file.read_text()) for place, file in files.items()}


@pytest.mark.long
@pytest.mark.parametrize(
    ("world", "check"), [*((2, name) for name in IN_TWO), *((3, name) for name in IN_THREE)], ids=str
)
def test_many_processes_compute_what_one_does(found, world, check):
    for rank in range(world):
        assert found[world, rank][check] == "", f"rank {rank}"


def test_every_check_is_run():
    written = {line.split("(")[0][10:] for line in WORKER.read_text().splitlines() if line.startswith("def check_")}
    assert written <= {*IN_THREE}


def test_a_world_of_one_does_nothing():
    group, module = Group(), nn.BatchNorm1d(3)
    out = ModelOutput(torch.zeros(5, 7), torch.zeros(5, 3), (), (), ())
    assert group.gather(out, group.sizes(5)) is out
    assert (group.shard.of(5), group.sizes(5)) == (slice(0, 5), (5,))
    module.weight.grad = torch.ones(3)
    before = module.weight.grad
    group.sum_gradients(module.parameters())
    group.broadcast(module)
    group.average_buffers(module)
    group.check_same(module, "it")
    assert module.weight.grad is before
    assert module.bias.grad is None
    assert group.mean_over_ranks([2.0]) == [2.0]
    with Group.open(Place(), CPU) as alone:
        assert alone == group
        assert not torch.distributed.is_initialized()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 50), st.integers(1, 9))
def test_sizes_share_all_images(count, world):
    sizes = Group(0, world).sizes(count)
    assert (len(sizes), sum(sizes)) == (world, count)
    assert max(sizes) - min(sizes) <= 1


def test_messages_are_as_few_as_their_size_allows(monkeypatch):
    monkeypatch.setattr(distributed, "BUCKET", 10)
    tensors = [torch.zeros(size) for size in (3, 5, 4, 6, 23, 1, 9)]
    assert list(distributed._buckets(tensors)) == [[0, 1], [2, 3], [4], [5, 6]]
    mixed = [torch.zeros(2), torch.zeros(2).double(), torch.zeros(2)]
    assert list(distributed._buckets(mixed)) == [[0, 2], [1]]
    assert list(distributed._buckets([])) == []


def test_place_of_torchrun():
    given = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "there", "MASTER_PORT": "77", "LOCAL_RANK": "1"}
    assert Place.from_environment(given) == Place(1, 3, "there", 77, local_rank=1)
    assert Place.from_environment({}) == Place(0, 1)


@pytest.mark.parametrize("broken", [{"RANK": None}, {"MASTER_PORT": "http"}])
def test_half_a_place_is_refused(broken):
    given = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "there", "MASTER_PORT": "77", **broken}
    with pytest.raises(OtkdError, match="torchrun, which sets all"):
        Place.from_environment({name: value for name, value in given.items() if value is not None})


def test_no_such_rank():
    with pytest.raises(OtkdError, match="rank 3 of 3 processes: ranks are 0 to 2"):
        Group.open(Place(3, 3), CPU)


def test_the_others_do_not_come():
    with pytest.raises(OtkdError, match=r"rank 0 of 2 did not meet the others at tcp://127.0.0.1:\d+ within 1 s"):
        Group.open(Place(0, 2, port=free_port()), CPU, timeout_s=1)
    assert not torch.distributed.is_initialized()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(sum), st.integers(0, 99))
def test_combined_moments_are_those_of_all_values(sizes, seed):
    values = torch.randn(sum(sizes), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 50
    parts = []
    for part in values.split(sizes):
        none = torch.zeros(3, dtype=torch.float64)
        var_C, mean_C = torch.var_mean(part, 0, correction=0) if len(part) else (none, none)
        parts.append(Moments(mean_C, var_C, torch.tensor(float(len(part)), dtype=torch.float64)))
    moments = combine(parts)
    torch.testing.assert_close(moments.mean_C, values.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.var_C, values.var(0, correction=0), rtol=1e-9, atol=1e-12)


def test_synchronised_outside_a_group_is_plain_batch_norm():
    torch.manual_seed(0)
    x, plain = torch.randn(5, 3, 4, 2), nn.BatchNorm2d(3)
    shared = synchronised(nn.Sequential(nn.BatchNorm2d(3)))[0]
    assert torch.equal(plain(x), shared(x))
    assert torch.equal(plain.running_var, shared.running_var)


def test_other_batch_norm_is_refused():
    with pytest.raises(TrialError, match="1 is a BatchNorm3d, which cannot be synchronised"):
        synchronised(nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm3d(3)))
