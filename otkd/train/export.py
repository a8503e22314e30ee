"""A trained student as files that other programs read: weights alone, or a graph from pixels to logits.

The graphs take images as they are stored, uint8 (N, C, H, W) from 0 to 255, for any N; they scale and normalise as
training did. Every file is read back and run, and its logits are held against the student's.
"""

from __future__ import annotations

import copy
import glob
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from otkd.core import plugins
from otkd.core.cards import DataCard
from otkd.core.errors import CheckpointError, OtkdError
from otkd.core.layout import Layout, TrialDir, atomic
from otkd.core.trial import Trial
from otkd.train.measure import one_thread
from otkd.train.restore import restore

CLOSE = 1e-3
"""The largest difference of a logit that rounding may make, relative to the largest logit."""
RUNS = 30


class Exported(NamedTuple):
    """A file, and what was seen when it was read back."""

    form: str
    path: Path
    bytes: int
    latency_ms: float
    """Median of one image on one CPU thread."""
    gap: float
    """Largest difference between its logits and the student's, relative to the largest of these."""


class Deployed(nn.Module):
    """From images as they are stored to logits.

    Args:
        network: normalised images in, `ModelOutput` out.
        card: the data set, for mean and standard deviation.
    """

    def __init__(self, network: nn.Module, card: DataCard) -> None:
        super().__init__()
        self.network = network
        self.mean_C11: Tensor
        self.std_C11: Tensor
        self.register_buffer("mean_C11", torch.tensor(card.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std_C11", torch.tensor(card.std).view(-1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (N, K) of uint8 images (N, C, H, W)."""
        logits: Tensor = self.network((image.float() / 255 - self.mean_C11) / self.std_C11).logits
        return logits


def find(layout: Layout, key: str, best: bool = False) -> tuple[Trial, Path]:
    """The finished trial whose key begins with `key`, and the file of its last or best weights.

    Raises:
        OtkdError: there is none, or more than one; nothing was held out by which weights could be best.
    """
    found = [path for path in sorted(layout.trials.glob(f"{glob.escape(key)}*")) if TrialDir(path).last.exists()]
    if len(found) != 1:
        what = f"{len(found)} trials begin with" if found else "no finished trial begins with"
        raise OtkdError(f"{what} {key!r} in {layout.trials}; `otkd plan SWEEP` shows the keys of a sweep's trials.")
    folder = TrialDir(found[0])
    if best and not folder.best.exists():
        raise OtkdError(f"{folder.path.name} was trained without validation images, so none of its weights are best.")
    return Trial.model_validate_json(folder.trial.read_text(encoding="utf-8")), folder.best if best else folder.last


def export(
    trial: Trial, weights: dict[str, Tensor], folder: Path, forms: tuple[str, ...] = (), suffix: str = ""
) -> list[Exported]:
    """Write a student in each form and read it back.

    Args:
        trial: how it was trained.
        weights: its state dict.
        folder: where to write.
        forms: names among `FORMS`; all by default.
        suffix: of the files' names, before their ending.

    Raises:
        OtkdError: there is no such form.
        CheckpointError: a file does not give the student's logits.
    """
    unknown = [form for form in forms if form not in FORMS]
    if unknown:
        raise OtkdError(plugins.unknown("form", unknown[0], list(FORMS)))
    card = trial.data.card
    student = Deployed(restore(trial, weights), card).eval()
    stem = folder / f"{trial.student.name.replace('/', '-')}-{trial.key}{suffix}"
    return [_export(form, student, trial, card, stem) for form in forms or FORMS]


def _export(form: str, student: Deployed, trial: Trial, card: DataCard, stem: Path) -> Exported:
    ending, write, read = FORMS[form]
    path = stem.with_name(stem.name + ending)
    with atomic(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(student, trial, card, temporary)
    run = read(path, student)
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (n, card.channels, card.side, card.side), generator=generator).byte() for n in (1, 7)]
    gap = max(_gap(run(image), student, image) for image in images)
    if not gap <= CLOSE:
        path.unlink()
        raise CheckpointError(f"{path}: its logits differ from the student's by {gap:.2g} of the largest.")
    return Exported(form, path, path.stat().st_size, _latency_ms(run, images[0]), gap)


@torch.no_grad()
def _gap(logits: Tensor, student: Deployed, image: Tensor) -> float:
    truth = student(image)
    return ((logits - truth).abs().max() / truth.abs().max()).item()


def _latency_ms(run: Callable[[Tensor], Tensor], image: Tensor) -> float:
    seconds = []
    with one_thread():
        for _ in range(5 + RUNS):
            begin = time.perf_counter()
            run(image)
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[5:]) * 1000


def _facts(trial: Trial, card: DataCard) -> dict[str, str]:
    """What a reader of bare weights has to know."""
    facts = {
        "architecture": trial.student.name,
        "classes": card.classes,
        "channels": card.channels,
        "side": card.side,
        "mean": card.mean,
        "std": card.std,
        "put on it by": [term for term in trial.objective if hasattr(plugins.load("losses", term), "rebuild")],
        "trial": trial.key,
    }
    return {name: json.dumps(value) if not isinstance(value, str) else value for name, value in facts.items()}


def _write_state_dict(student: Deployed, trial: Trial, card: DataCard, path: Path) -> None:
    torch.save(student.network.state_dict(), path)


def _read_state_dict(path: Path, student: Deployed) -> Callable[[Tensor], Tensor]:
    return _filled(student, torch.load(path, weights_only=True))


def _write_safetensors(student: Deployed, trial: Trial, card: DataCard, path: Path) -> None:
    from safetensors.torch import save

    state = {name: tensor.contiguous() for name, tensor in student.network.state_dict().items()}
    path.write_bytes(save(state, metadata=_facts(trial, card)))


def _read_safetensors(path: Path, student: Deployed) -> Callable[[Tensor], Tensor]:
    from safetensors.torch import load_file

    return _filled(student, load_file(path))


def _filled(student: Deployed, state: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """A copy of the student with weights from a file in place of its own."""
    twin = copy.deepcopy(student)
    for parameter in twin.network.parameters():
        nn.init.zeros_(parameter)
    twin.network.load_state_dict(state)
    return torch.no_grad()(twin)


def _graph(student: Deployed, card: DataCard) -> torch.export.ExportedProgram:
    """The student as a graph for any number of images."""
    image = torch.zeros(2, card.channels, card.side, card.side, dtype=torch.uint8)
    return torch.export.export(student, (image,), dynamic_shapes={"image": {0: torch.export.Dim("images", min=1)}})


def _write_program(student: Deployed, trial: Trial, card: DataCard, path: Path) -> None:
    with path.open("wb") as file:
        torch.export.save(_graph(student, card), file)


def _read_program(path: Path, student: Deployed) -> Callable[[Tensor], Tensor]:
    with path.open("rb") as file:
        run: Callable[[Tensor], Tensor] = torch.export.load(file).module()
    return torch.no_grad()(run)


def _write_onnx(student: Deployed, trial: Trial, card: DataCard, path: Path) -> None:
    program = torch.onnx.export(
        _graph(student, card), dynamo=True, input_names=["image"], output_names=["logits"], verbose=False
    )
    assert program is not None
    program.model.metadata_props.update(_facts(trial, card))
    program.save(str(path))


def _read_onnx(path: Path, student: Deployed) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


class Form(NamedTuple):
    """How one kind of file is written and read back."""

    ending: str
    write: Callable[[Deployed, Trial, DataCard, Path], None]
    read: Callable[[Path, Deployed], Callable[[Tensor], Tensor]]


FORMS = {
    "state_dict": Form(".pt", _write_state_dict, _read_state_dict),
    "safetensors": Form(".safetensors", _write_safetensors, _read_safetensors),
    "program": Form(".pt2", _write_program, _read_program),
    "onnx": Form(".onnx", _write_onnx, _read_onnx),
}
