"""Exported files, read back by the programs that they are for."""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open

from otkd.core import plugins
from otkd.core.errors import CheckpointError, OtkdError
from otkd.core.trial import Model, Train, Trial
from otkd.data.pipeline import prepare
from otkd.sweep.runner import Mailbox
from otkd.train import export, fit
from otkd.train.checkpoint import load_weights
from otkd.train.export import FORMS

from .conftest import DATA, TEACHER


@pytest.fixture
def pixels(cache):
    """The test images as they are stored, (N, C, H, W), and their classes."""
    splits = prepare(DATA, data_dir=None, cache_dir=cache / "cache")
    return np.asarray(splits.test.source.permute(0, 3, 1, 2)), np.asarray(splits.test.labels)


def test_every_form_gives_the_networks_logits(cache, tmp_path, pixels):
    trial, file = export.find(export.Layout(cache), TEACHER.key[:6])
    files = export.export(trial, load_weights(file), tmp_path)
    assert [file.form for file in files] == list(FORMS)
    assert all(file.path.stat().st_size == file.bytes and file.latency_ms > 0 for file in files)
    assert all(file.gap < 1e-5 for file in files)
    session = onnxruntime.InferenceSession(files[-1].path, providers=["CPUExecutionProvider"])
    logits = session.run(None, {"image": pixels[0]})[0]
    accuracy = json.loads((file.parent / "result.json").read_text())["metrics"]["test/last/top1"]
    found = 100 * (logits.argmax(1) == pixels[1]).mean()
    assert found == pytest.approx(accuracy, abs=0.61)  # 3 of 500 images: that on record may be of bf16
    program = torch.export.load(files[2].path).module()
    torch.testing.assert_close(program(torch.from_numpy(pixels[0])).detach().numpy(), logits, rtol=1e-4, atol=1e-4)
    with safe_open(files[1].path, "pt") as opened:
        assert opened.metadata()["architecture"] == "resnet14"
        assert json.loads(opened.metadata()["mean"]) == list(plugins.head("data", "digits").CARD.mean)


def test_a_deployed_network_is_exported_with_what_was_put_on_it(environment, tmp_path):
    place = environment()
    trial = Trial(
        data=DATA,
        student=Model(name="resnet8"),
        teacher=TEACHER,
        objective={"simkd": {}},
        train=Train(epochs=1, batch_size=32),
    )
    (result,) = fit([trial], Mailbox(), place)
    plain = plugins.cards("models")["resnet8"].params
    assert result.metrics["model/params"] > plain
    _, file = export.find(place.layout, trial.key)
    (made,) = export.export(trial, load_weights(file), tmp_path, ("onnx",))
    assert made.gap < 1e-5


def test_best_and_last_weights_have_files_of_their_own(cache, tmp_path):
    paths = []
    for best in (False, True):
        trial, file = export.find(export.Layout(cache), TEACHER.key, best)
        (made,) = export.export(trial, load_weights(file), tmp_path, ("state_dict",), "-best" if best else "")
        paths.append(made.path)
    assert paths[0] != paths[1]


def test_without_validation_images_no_weights_are_best(environment):
    place = environment()
    data = DATA.model_copy(update={"val": 0})
    trial = Trial(data=data, student=Model(name="resnet8"), objective={"ce": {}}, train=Train(epochs=1, batch_size=32))
    fit([trial], Mailbox(), place)
    with pytest.raises(OtkdError, match="was trained without validation images"):
        export.find(place.layout, trial.key, best=True)


def test_what_is_not_there_is_said(cache, tmp_path):
    with pytest.raises(OtkdError, match="no finished trial begins with 'zz'"):
        export.find(export.Layout(cache), "zz")
    with pytest.raises(OtkdError, match=r"there is no form 'onxx'; there is state_dict, .*Did you mean 'onnx'"):
        export.export(TEACHER, {}, tmp_path, ("onxx",))


def test_a_file_that_gives_other_logits_is_refused(cache, tmp_path, monkeypatch):
    trial, file = export.find(export.Layout(cache), TEACHER.key)
    form = FORMS["state_dict"]
    monkeypatch.setitem(FORMS, "state_dict", form._replace(read=lambda path, student: lambda image: student(image) + 1))
    with pytest.raises(CheckpointError, match="its logits differ from the student's by"):
        export.export(trial, load_weights(file), tmp_path, ("state_dict",))
    assert not list(tmp_path.iterdir())


def test_the_command_prints_size_and_speed(cache, tmp_path):
    words = ["export", TEACHER.key, "--runs", str(cache), "--to", str(tmp_path), "--form", "safetensors"]
    done = subprocess.run(
        [sys.executable, "-c", "from otkd.cli import main; main()", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"writing safetensors to {tmp_path}, and reading each back …\n")
    assert f"resnet14-{TEACHER.key}.safetensors" in done.stdout
    assert "ms an image" in done.stdout
