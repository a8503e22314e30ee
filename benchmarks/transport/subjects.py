"""Which codes are compared with which solver of otkd."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from benchmarks.transport import peers
from benchmarks.transport.problems import Answer, Solve


class Peer(NamedTuple):
    family: str
    """Its column."""
    label: str
    """What it is within the family: a method, a backend."""
    solve: Solve
    value: str
    """Which reference its value is compared with."""
    counted: bool = False
    """It has no stopping rule, and gets the smallest number of iterations that suffices."""
    package: str = ""
    """What has to be installed besides POT."""

    @property
    def name(self) -> str:
        return f"{self.family} {self.label}".strip()


class Subject(NamedTuple):
    """A solver of otkd with those that do the same."""

    value: str
    entropic: bool
    peers: list[Peer]


METHODS = ("sinkhorn", "sinkhorn_log", "sinkhorn_stabilized")
BACKENDS = {"torch": False, "numpy": True}


def both_backends(family: str, solve: Callable[..., Answer], value: str, label: str = "") -> list[Peer]:
    return [
        Peer(family, f"{label} {backend}".strip(), partial(solve, numpy=numpy), value)
        for backend, numpy in BACKENDS.items()
    ]


def entropic_losses(debias: bool, value: str) -> list[Peer]:
    """Codes on points that have no stopping rule."""
    geomloss = partial(peers.geomloss, debias=debias)
    flash = partial(peers.flash_sinkhorn, debias=debias)
    return [
        Peer("geomloss", "", geomloss, value, counted=True, package="geomloss"),
        *(
            Peer("flash-sinkhorn", name, partial(flash, backend=name), value, counted=True, package="flash-sinkhorn")
            for name in ("symmetric", "alternating")
        ),
    ]


def sinkhorn_peers() -> list[Peer]:
    sinkhorn2 = [
        both_backends("POT sinkhorn2", partial(peers.pot_sinkhorn2, method=method), "linear", method)
        for method in METHODS
    ]
    return [
        *(peer for pair in sinkhorn2 for peer in pair),
        Peer("POT solve_sample", "envelope", peers.pot_solve_sample, "kl"),
        *(
            Peer("POT solve_sample_batch", method, partial(peers.pot_batch, method=method), "entropy")
            for method in ("log_sinkhorn", "sinkhorn")
        ),
        *entropic_losses(False, "kl"),
    ]


def divergence_peers() -> list[Peer]:
    return [
        *both_backends("POT empirical_sinkhorn_divergence", peers.pot_divergence, "linear divergence"),
        *entropic_losses(True, "kl divergence"),
    ]


def exact_peers() -> list[Peer]:
    return [
        *both_backends("POT emd2", peers.pot_emd2, "exact"),
        Peer("POT solve_sample", "", peers.pot_solve_sample, "exact"),
    ]


SUBJECTS = {
    "exact": Subject("exact", False, exact_peers()),
    "sliced": Subject("sliced", False, both_backends("POT sliced_wasserstein_distance", peers.pot_sliced, "sliced")),
    "gaussian": Subject("gaussian", False, both_backends("POT bures_wasserstein", peers.pot_gaussian, "gaussian")),
    "sinkhorn": Subject("kl", True, sinkhorn_peers()),
    "divergence": Subject("kl divergence", True, divergence_peers()),
}
