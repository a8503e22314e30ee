"""A network for inference alone, its batch norms folded into the convolutions before them.

As in Jacob et al. (CVPR 2018, Sec. 3.2, without its quantisation). In eval mode a batch norm multiplies each channel by
a number and adds another, which the convolution before it can do with its own weights and bias. The network keeps its
own code; only those weights change, and the batch norm becomes an identity. Where to do so is read off the network's
graph, traced once for each way that its branches on the image's size can go.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

MOST_WAYS = 16
"""Ways through a network that are traced; one with more is left as it is."""


class Pair(NamedTuple):
    """The paths of a convolution and of the batch norm that alone reads it."""

    conv: str
    norm: str


def folded(model: nn.Module) -> nn.Module:
    """A frozen copy of `model` in eval mode, with batch norms folded where nothing else sees the convolution's output.

    All its outputs are the same but for rounding. What cannot be folded, or a network that cannot be traced, is copied
    as it is. The copy's `norms` are identities: read what batch norms hold from the original.
    """
    made = copy.deepcopy(model).eval()
    for pair in _pairs(made):
        _fold(made, pair)
    return made.eval().requires_grad_(False)


def _fold(model: nn.Module, pair: Pair) -> None:
    conv = cast(nn.Conv2d, model.get_submodule(pair.conv))
    norm = cast(nn.BatchNorm2d, model.get_submodule(pair.norm))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    for path in [path for path, module in model.named_modules(remove_duplicate=False) if module is norm]:
        model.set_submodule(path, nn.Identity())


def _pairs(model: nn.Module) -> set[Pair]:
    """What can be folded, whichever way the network takes."""
    try:
        graphs = _graphs(model)
    except Exception:  # code that cannot be traced fails in as many ways as code can
        return set()
    return set.intersection(*(_pairs_in(graph, model) for graph in graphs)) if graphs else set()


def _graphs(model: nn.Module) -> list[fx.Graph]:
    """The network's graph for every way through its branches; none where there are too many.

    Raises:
        Exception: of any kind, where the network cannot be traced.
    """
    graphs: list[fx.Graph] = []
    ahead: list[tuple[bool, ...]] = [()]
    while ahead:
        if len(graphs) == MOST_WAYS:
            return []
        tracer = _Tracer(ahead.pop())
        graphs.append(tracer.trace(model))
        ahead += tracer.other_ways()
    return graphs


class _Tracer(fx.Tracer):
    """Takes the branches that it is told to take, and those that come after them as if their condition held.

    Args:
        told: whether the condition holds, for the first branches.
    """

    proxy_buffer_attributes = True  # code that reads a batch norm's statistics itself shows up in the graph

    def __init__(self, told: tuple[bool, ...]) -> None:
        super().__init__()
        self._told = told
        self._taken: tuple[bool, ...] = ()

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Whether the condition of the next branch holds."""
        place = len(self._taken)
        self._taken += (self._told[place] if place < len(self._told) else True,)
        return self._taken[-1]

    def other_ways(self) -> Iterable[tuple[bool, ...]]:
        """What to tell others, so that all together take each way once."""
        return [(*self._taken[:place], False) for place in range(len(self._told), len(self._taken))]


def _pairs_in(graph: fx.Graph, model: nn.Module) -> set[Pair]:
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    once = {str(path) for path, count in calls.items() if count == 1} - read
    convs = {path for path in once if _is_plain(model.get_submodule(path), nn.Conv2d)}
    norms = {path for path in once if _is_plain(model.get_submodule(path), nn.BatchNorm2d)}
    followed = [(node.target, next(iter(node.users))) for node in graph.nodes if len(node.users) == 1]
    return {
        Pair(conv, user.target)
        for conv, user in followed
        if conv in convs and user.target in norms and _remembers(model.get_submodule(user.target))
    }


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether it is of that very class, for a subclass may compute something else, and nobody looks on."""
    return type(module) is kind and not module._forward_hooks and not module._forward_pre_hooks


def _remembers(norm: Any) -> bool:
    """Whether a batch norm normalises by what it has seen in training rather than by the batch at hand."""
    return norm.running_mean is not None and norm.running_var is not None
