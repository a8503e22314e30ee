import subprocess
import sys

import pytest

from otkd.core import datasets, plugins
from otkd.core.errors import ConfigError, OtkdError

HEADS = """
import sys
from otkd.core import plugins
for group in ("losses", "ot", "models", "data"):
    for name in plugins.names(group):
        plugins.head(group, name)
heavy = {"torch", "ray", "numpy", "pandas", "mlflow"} & set(sys.modules)
assert not heavy, heavy
print(sum(len(plugins.names(group)) for group in plugins.GROUPS))
"""


def test_heads_of_all_plugins_load_without_torch():
    done = subprocess.run([sys.executable, "-c", HEADS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10


def test_unknown_plugin_names_the_nearest():
    with pytest.raises(OtkdError, match="Did you mean 'cifar10'"):
        plugins.source("data", "cifar10O")


def test_unknown_data_set_names_all_and_the_command_that_lists_them():
    told = datasets.unknown("folders")
    assert told.startswith("there is no data set 'folders'; there is cifar10, ")
    assert ", folder/<name>, imagenet, parquet/<name>, " in told
    assert told.endswith("(`otkd data list`). Did you mean 'folder/<name>'?")


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("folder/x/", "folder/x"),
        ("folder/./x", "folder/x"),
        ("folder//x", "folder/x"),
        ("folder/y/../x", "folder/x"),
        ("parquet/a/b/.", "parquet/a/b"),
        ("digits/", "digits"),
    ],
)
def test_one_data_set_has_one_name(name, plain):
    assert datasets.known(plain)
    assert not datasets.known(name)
    expected = f"a data set's name has no empty part and no '.' or '..'. Got {name!r}. Write {plain!r}."
    assert datasets.unknown(name) == expected
    with pytest.raises(OtkdError, match="Write"):
        datasets.configure(name, {})


@pytest.mark.parametrize("name", ["folder/", "folder/.", "folder/../x", "/", "", "folder/../../x", 5, None, [1]])
def test_what_no_data_set_can_be_called(name):
    assert not datasets.known(name)
    assert datasets.unknown(name).startswith(f"there is no data set {name!r}; there is cifar10, ")


def test_problems_are_reported_together_with_their_paths():
    options = {"wieght": 1, "solver": {"name": "sinkhorn", "epsilon": -1, "epsilom": 2}, "cost": "manhattan"}
    with pytest.raises(ConfigError) as caught:
        plugins.configure("losses", "transport", options, "methods.ot.transport")
    text = str(caught.value)
    assert "methods.ot.transport.wieght: unknown key" in text
    assert "Did you mean 'weight'?" in text
    assert "methods.ot.transport.solver.epsilon" in text
    assert "Did you mean 'epsilon'?" in text
    assert "methods.ot.transport.cost" in text
    assert "'manhattan'" in text
    assert len(caught.value.problems) == 4


def test_a_solver_may_be_given_by_its_name_alone():
    assert plugins.configure("losses", "transport", {"solver": "exact"}).solver.name == "exact"
    with pytest.raises(ConfigError, match=r"solver: there is no solver 'sinkhron'.*Did you mean 'sinkhorn'"):
        plugins.configure("losses", "transport", {"solver": "sinkhron"})


def test_defaults_are_filled_in_so_that_the_key_does_not_depend_on_what_was_spelled_out():
    short = plugins.configure("losses", "transport", {"solver": "sinkhorn"}).model_dump(mode="json")
    long = plugins.configure("losses", "transport", short).model_dump(mode="json")
    assert short == long
    assert short["solver"]["epsilon"] > 0


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            "EPS = torch.finfo(torch.float32).eps",
            r"wrong\.py, line 4: NameError: name 'torch' is not defined\. Planning",
        ),
        ("import no_such_module", None),  # left out of the head, as all that planning does without
        ("import json\nraise ValueError(json.dumps(1))", r"wrong\.py, line 5: ValueError: 1\. Planning"),
    ],
)
def test_a_head_that_cannot_be_executed_is_named(tmp_path, monkeypatch, head, message):
    path = tmp_path / "wrong.py"
    config = 'class Config(SolverConfig):\n    name: str = "wrong"\n'
    path.write_text(f'"""Wrong."""\nimport torch\nfrom otkd.core.config import SolverConfig\n{head}\n{config}')
    monkeypatch.setattr(plugins, "source", lambda group, name: path)
    read = plugins.head.__wrapped__
    if message is None:
        assert read("ot", "wrong").Config().name == "wrong"
    else:
        with pytest.raises(OtkdError, match=message):
            read("ot", "wrong")
