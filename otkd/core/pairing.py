"""What a term may ask of a pair of networks, and the problem where the pair cannot give it; see `TermConfig.check`."""

from __future__ import annotations

from collections.abc import Iterator

from otkd.core.cards import ModelCard
from otkd.core.errors import Problem


def same_stages(student: ModelCard, teacher: ModelCard | None) -> Iterator[Problem]:
    """A problem unless each stage of the student has one of the teacher."""
    if teacher is not None and len(student.taps) != len(teacher.taps):
        yield Problem(
            "",
            f"pairs the networks' stages; the student has {', '.join(student.taps[1:])}, "
            f"the teacher {', '.join(teacher.taps[1:])}. `skip: true` under the method's `pairs:` leaves it out for a "
            "pair.",
        )


def same_channels(student: ModelCard, teacher: ModelCard | None, first: int = 0) -> Iterator[Problem]:
    """A problem unless taps from `first` on have as many channels in both networks, for terms without projections."""
    if teacher is not None and student.channels[first:] != teacher.channels[first:]:
        channels_s, channels_t = (", ".join(map(str, card.channels[first:])) for card in (student, teacher))
        yield Problem(
            "",
            f"compares channels one by one; the student's maps have {channels_s}, the teacher's {channels_t}.",
        )


def has_preacts(student: ModelCard | None, teacher: ModelCard | None) -> Iterator[Problem]:
    """A problem where one of the given networks does not show its stages before their last ReLU."""
    for who, card in (("student", student), ("teacher", teacher)):
        if card is not None and not card.preacts:
            yield Problem("", f"needs the stages before their last ReLU, which the {who} does not show.")


def has_norms(teacher: ModelCard | None) -> Iterator[Problem]:
    """A problem where the teacher does not name the batch norm before each stage's last ReLU."""
    if teacher is not None and not teacher.norms:
        yield Problem("", "needs the batch norm before each stage's last ReLU, which the teacher does not name.")


def pools_last(teacher: ModelCard | None) -> Iterator[Problem]:
    """A problem unless the teacher's classifier reads the mean of its last stage after the ReLU."""
    if teacher is not None and not teacher.pools_last:
        yield Problem(
            "", "reads the teacher's classifier on its last stage; between them this teacher has another layer."
        )
