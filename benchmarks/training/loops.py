"""The loops that are compared. A call is one epoch of the scene's images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks.training.scene import BATCH, Scene, Terms
from otkd.core import names
from otkd.core.output import Batch, ModelOutput
from otkd.core.records import EpochRecord, TrialResult
from otkd.core.trial import Sgd, Trial
from otkd.data.pipeline import Images
from otkd.train import CohortTrainer, Environment
from otkd.train.fold import folded
from otkd.train.optim import optimizer

WORKERS = 2
"""Processes of the classic loop's DataLoader."""


class Loop(Protocol):
    """Something that trains."""

    @contextmanager
    def round(self) -> Iterator[Callable[[], object]]:
        """What to time; what comes before and after is not timed."""
        ...


class Quiet:
    """A sink that keeps nothing."""

    def start(self, trial: Trial) -> None:
        """Nothing."""

    def epoch(self, record: EpochRecord) -> None:
        """Nothing."""

    def finish(self, result: TrialResult) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Engine:
    """otkd's engine with one student or several; `losses` are the mean training losses of its first epoch."""

    def __init__(self, scene: Scene, objectives: Sequence[Terms]) -> None:
        place = scene.place
        environment = Environment(
            layout=scene.layout,
            data_dir=place.data_dir,
            device=str(place.device),
            threads=place.threads,
            checkpoint_s=math.inf,
        )
        self.trainer = CohortTrainer([scene.trial(terms) for terms in objectives], Quiet(), environment)
        self.losses = [record.metrics[names.TRAIN_LOSS] for record in self._epoch()]

    @contextmanager
    def round(self) -> Iterator[Callable[[], object]]:
        yield self._epoch

    def _epoch(self) -> list[EpochRecord]:
        records = self.trainer.step()
        for result in self.trainer.results.values():
            raise RuntimeError(f"a member has {result.status}: {result.reason}")
        return records


class Floor:
    """The arithmetic of a training step and nothing else.

    Args:
        fast: with folded batch norm in the teacher and the engine's optimizer.
    """

    def __init__(self, scene: Scene, terms: Terms, *, fast: bool) -> None:
        self.scene = scene
        made = scene.networks(terms, torch.channels_last)
        self.student, self.objective, parameters = made.student, made.objective, made.parameters
        self.teacher = folded(made.teacher) if fast else made.teacher
        config = scene.trial(terms).train.optimizer
        self.optimizer = optimizer(config, parameters) if fast else plain_sgd(config, parameters)
        self.looks = self.objective.needs_teacher()

    @contextmanager
    def round(self) -> Iterator[Callable[[], object]]:
        yield lambda: self._steps([self.scene.batch] * len(self.scene.batches))

    def mean_loss(self, batches: Iterable[Batch]) -> float:
        """Train on these; their mean loss, by image."""
        pairs = [(float(self._step(batch)), len(batch.target)) for batch in batches]
        return sum(loss * size for loss, size in pairs) / sum(size for _, size in pairs)

    def _steps(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            self._step(batch)

    def _step(self, batch: Batch) -> Tensor:
        dtype = self.scene.dtype
        with torch.autocast(batch.image.device.type, dtype, enabled=dtype is not None):
            out_t = answer(self.teacher, batch.image) if self.looks else None
            loss: Tensor = self.objective(self.student(batch.image), out_t, batch).loss
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class Meter:
    """A running mean of numbers on the host."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, value: float, size: int) -> None:
        self.total += value * size
        self.count += size


class Photographs(Dataset[tuple[Tensor, int, int]]):
    """A split as PIL images, each transformed by itself."""

    def __init__(self, images: Images, transform: Callable[[object], Tensor]) -> None:
        assert isinstance(images.source, Tensor)
        self.pixels_NHWC = images.source[images.indices].numpy()
        self.labels_N, self.transform = images.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels_NHWC[index])), self.labels_N[index], index


class Classic:
    """A training loop as public code bases have it."""

    def __init__(self, scene: Scene, terms: Terms) -> None:
        self.scene = scene
        made = scene.networks(terms, torch.contiguous_format)
        self.student, self.teacher, self.objective = made.student, made.teacher, made.objective
        self.optimizer = plain_sgd(scene.trial(terms).train.optimizer, made.parameters)
        self.looks = self.objective.needs_teacher()
        self.photographs = Photographs(scene.splits.train, transform(scene))
        self.meters = {name: Meter() for name in ("loss", "top1", "top5")}

    @contextmanager
    def round(self) -> Iterator[Callable[[], object]]:
        """The workers have started, and one batch more than is timed goes before."""
        samples = RandomSampler(self.photographs, num_samples=len(self.photographs) + BATCH)
        loader = DataLoader(self.photographs, BATCH, sampler=samples, num_workers=WORKERS)
        batches = iter(loader)
        self._step(next(batches))
        rest = islice(batches, len(loader) - 1)  # one more look would end the workers, which takes a while
        yield lambda: self._steps(rest)
        for _ in batches:
            pass

    def _steps(self, batches: Iterable[Sequence[Tensor]]) -> None:
        for batch in batches:
            self._step(batch)

    def _step(self, batch: Sequence[Tensor]) -> None:
        image, target, index = (tensor.to(self.scene.place.device) for tensor in batch)
        out_s: ModelOutput = self.student(image)
        out_t = answer(self.teacher, image) if self.looks else None
        loss = self.objective(out_s, out_t, Batch(image, target, index)).loss
        top1, top5 = accuracy(out_s.logits, target)
        for name, value in (("loss", loss), ("top1", top1), ("top5", top5)):
            self.meters[name].update(value.item(), len(target))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


@torch.no_grad()
def answer(teacher: torch.nn.Module, image_BCHW: Tensor) -> ModelOutput:
    output: ModelOutput = teacher(image_BCHW)
    return output


@torch.no_grad()
def accuracy(logits_BK: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
    """Top-1 and top-5 in percent."""
    right_B5 = logits_BK.topk(5, dim=1).indices == target_B[:, None]
    return 100 * right_B5[:, :1].float().sum(1).mean(), 100 * right_B5.float().sum(1).mean()


def transform(scene: Scene) -> Callable[[object], Tensor]:
    """The data set's usual augmentation by torchvision, for one PIL image."""
    from torchvision import transforms

    card, augment = scene.splits.card, scene.data.augment
    assert augment is not None
    steps = [
        transforms.RandomCrop(card.side, padding=augment.pad),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(card.mean, card.std),
    ]
    made: Callable[[object], Tensor] = transforms.Compose(steps)
    return made


def plain_sgd(config: object, parameters: list[torch.nn.Parameter]) -> torch.optim.SGD:
    """SGD as torch chooses it by itself."""
    assert isinstance(config, Sgd)
    return torch.optim.SGD(parameters, **config.model_dump(exclude={"name"}))
