"""What a sweep file can name, with every setting."""

from io import StringIO

import pytest
from rich.console import Console

from otkd.core.errors import OtkdError
from otkd.sweep.listings import LISTINGS, show_list


def listed(what):
    console = Console(width=400, file=StringIO())
    show_list(what, console)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("losses", ("transport  ", "solver", "(batch | spatial | channel | ")),
        (
            "methods",
            ("methods: {from: methods.yaml, only: […]}", "kd ", "{ce: 0.1, kd: {weight: 0.9, temperature: 4}}"),
        ),
        ("models", ("resnet8 ", "MobileNetV2")),
        ("data", ("digits ", "svhn: options", "Train also on the 531,131", "(1 | 3)")),
        ("solvers", ("sinkhorn  ", "epsilon")),
        ("optimizers", ("adamw  ", "sgd  ", "dot  ", "nesterov")),
        ("schedules", ("onecycle  ", "peak", "Share of the training at which the rate is highest.")),
        ("schedulers", ("asha  ", "grace")),
        ("sweeps", ("sweeps/demo.yaml", "32 methods for others")),
    ],
)
def test_what_there_is(what, parts):
    shown = listed(what)
    for part in parts:
        assert part in shown, part


def test_a_folder_without_sweeps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no folder sweeps/" in listed("sweeps")
    assert "no file of methods" in listed("methods")
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "broken.yaml").write_text("a: [", encoding="utf-8")
    assert "sweeps/broken.yaml" in listed("sweeps")


def test_an_unknown_kind_is_answered_with_those_there_are():
    with pytest.raises(OtkdError, match=f"allowed: {', '.join(LISTINGS)}. Did you mean 'models'"):
        listed("model")
