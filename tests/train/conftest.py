from pathlib import Path

import pytest
import torch

from otkd.core.layout import Layout
from otkd.core.trial import Augment, Cosine, Data, Model, Sgd, Train, Trial
from otkd.sweep.runner import Mailbox
from otkd.train import Environment, fit

DATA = Data(name="digits", val=0.2, limit=150, augment=Augment(pad=1))
TRAIN = Train(epochs=3, batch_size=32, optimizer=Sgd(name="sgd", lr=0.05), schedule=Cosine(name="cosine", warmup=1))
TEACHER = Trial(data=DATA, student=Model(name="resnet14"), objective={"ce": {}}, train=TRAIN)
METHODS = {
    "student": {"ce": {}},
    "kd": {"ce": {"weight": 0.1}, "kd": {"weight": 0.9}},
    "fitnets": {"ce": {}, "fitnet": {}},
    "at": {"ce": {}, "attention": {}},
    "ot": {"ce": {}, "transport": {}},
    "emd": {"ce": {}, "transport": {"solver": {"name": "exact"}}},
    "sliced": {"ce": {}, "transport": {"solver": {"name": "sliced", "projections": 5}}},
    "warm": {"ce": {}, "transport": {"points": "channel", "layer": 3, "warm_start": True}},
    "wkd": {"ce": {}, "wkd_logit": {"layer": "stage3", "side": 1}},
    "wcord": {"ce": {}, "wcord": {"width": 9, "solver": {"name": "sliced", "projections": 5}}},
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """A `runs/` folder with a decoded data set and a trained teacher, to be copied from."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("trained")
    fit([TEACHER], Mailbox(), Environment(layout=Layout(root), device="cpu"))
    return root


@pytest.fixture
def environment(cache, tmp_path):
    """Builds environments, each with a `runs/` folder of its own in which the teacher is trained."""

    def build(name="runs", **options):
        root = tmp_path / name
        if not root.exists():
            root.mkdir()
            (root / "cache").symlink_to(cache / "cache")
            (root / "trials").mkdir()
            (root / "trials" / TEACHER.key).symlink_to(cache / "trials" / TEACHER.key)
        return Environment(layout=Layout(root), device="cpu", **options)

    return build


@pytest.fixture
def trial():
    """Builds students of the trained teacher."""

    def build(method="kd", **changes):
        parts = {"data": DATA, "student": Model(name="resnet8"), "teacher": TEACHER, "train": TRAIN}
        return Trial(**{**parts, "objective": METHODS[method] if isinstance(method, str) else method, **changes})

    return build


@pytest.fixture
def methods():
    return METHODS
