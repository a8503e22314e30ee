"""What every term of an objective is made of."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from otkd.core.config import TermConfig
from otkd.core.output import Batch, ModelOutput


class LossOutput(NamedTuple):
    """A term's value and the parts worth logging."""

    value: Tensor
    """Scalar, unweighted."""
    parts: dict[str, Tensor] = {}
    """Diagnostics by name: detached scalars, averaged over the epoch."""


class Probe(NamedTuple):
    """What both networks return for two images: a term builds its projections from these shapes."""

    student: ModelOutput
    teacher: ModelOutput | None
    classes: int
    classifier_t: Tensor | None = None
    """Weights (K, D) of the teacher's last linear layer, detached."""
    bias_t: Tensor | None = None
    """Its bias (K,)."""
    norms_t: tuple[tuple[Tensor, Tensor], ...] = ()
    """Scale and shift (C,) of the teacher's batch norm before each stage's last ReLU, detached; empty where unknown."""
    labels_N: Tensor | None = None
    """Classes of the trial's training images: what `Batch.indices` points into."""
    batch_size: int = 64
    """Images in a full batch."""


class Stage(NamedTuple):
    """A stage of training before the main one, for the terms that ask for it."""

    name: str
    epochs: int
    lr: float
    """Constant learning rate of the stage."""
    student: bool = True
    """Whether the student takes part; where it does not it is left as it is."""


class Snapshot(NamedTuple):
    """A matrix to be looked at: rows are the student's, columns the teacher's."""

    matrix_NM: Tensor
    classes_N: Tensor | None
    """Labels of rows and columns, ascending, where these are images."""
    about: str
    """What it shows, for a caption."""


class TermLoss(nn.Module):
    """Base of every `Loss`. Its parameters are trained with the student and are not part of the deployed network.

    Args:
        config: the plug-in's checked `Config`.
        probe: outputs of both networks for two images.
    """

    needs_teacher: ClassVar[bool] = True
    """Whether `forward` looks at the teacher's output."""

    ordered: bool = False
    """Whether the order of the images in a batch matters, as it does in some published definitions."""

    in_training: bool
    """Whether the term takes part in the main stage, as its configuration says."""

    needs_preparation: bool = False
    """Whether `observe` and `prepare` have to be called before training."""

    def __init__(self, config: TermConfig, probe: Probe) -> None:
        super().__init__()
        self.in_training = config.in_training

    def observe(self, batch: Batch, out_t: ModelOutput) -> None:
        """Look, before training begins, at the teacher's output for one batch of training images.

        Every training image comes once, in order, not augmented. All terms of a cohort look at the same pass.
        """

    def prepare(self) -> None:
        """Make of what was observed what training needs, and let go of the rest.

        What is learned has to lie in buffers, whose shapes the probe fixes: a resumed trial reads them back.
        """

    def snapshot(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> dict[str, Snapshot]:
        """What to keep of one fixed batch, in eval mode, after some epochs and the last; by name within the term.

        Nothing of what training goes on with may change.
        """
        return {}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Stages before the main one."""
        return ()

    def deployed(self, model: nn.Module) -> nn.Module:
        """The network that is evaluated, measured and kept, of the student in training: a term may put parts on it.

        The plug-in of such a term has a function `rebuild(student, weights)`, which gives the same network for weights
        that were kept.
        """
        return model

    def pretrain(self, out_s: ModelOutput | None, out_t: ModelOutput, batch: Batch) -> LossOutput:
        """The term for one batch of a stage of its own; `out_s` is None where the student takes no part."""
        assert out_s is not None
        output: LossOutput = self(out_s, out_t, batch)
        return output

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        """The term for one batch. Called inside autocast; numerics that need fp32 see to it themselves."""
        raise TypeError(f"{type(self).__module__} defines no forward")
