"""Several processes that train one trial: each forwards its shard of a batch, and every loss sees the whole batch.

All processes gather the outputs of both networks and compute the same objective on them, so that terms which compare
images with each other mean what they mean in one process. Going backward, each takes the gradient of its own images
through the network; the sum over all processes is the gradient of the whole batch. Objectives are computed everywhere
alike, so their parameters need no such sum. The numbers are those of one process but for rounding, as long as batch
norm is synchronised (`otkd.train.batchnorm`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from otkd.core.errors import OtkdError, TrialError
from otkd.core.output import ModelOutput
from otkd.data.batches import Shard

TIMEOUT_S = 600.0
"""Seconds after which a process gives up waiting for the others."""
BUCKET = 2**23
"""The most numbers that travel in one message when gradients or weights do: 32 MiB in single precision."""


class GroupError(OtkdError):
    """The processes of a trial have lost each other; none of them can go on."""


class Place(NamedTuple):
    """Where one process stands among those that share a trial, and where they meet."""

    rank: int = 0
    world: int = 1
    """Processes in all."""
    host: str = "127.0.0.1"
    """The machine of rank 0."""
    port: int = 29500
    local_rank: int = 0
    """Which of its machine's visible GPUs is its own."""
    file: str = ""
    """A file that does not exist yet, by which processes of one machine meet instead: nobody else can reach them."""

    @property
    def url(self) -> str:
        """Where the processes meet, as torch wants it."""
        return f"file://{self.file}" if self.file else f"tcp://{self.host}:{self.port}"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Place:
        """The place that torchrun gave this process; the only one of a world of 1 where torchrun did not start it.

        Raises:
            OtkdError: a variable is missing or no number.
        """
        if "WORLD_SIZE" not in environment:
            return cls()
        try:
            rank, world, port = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
            return cls(rank, world, environment["MASTER_ADDR"], port, int(environment.get("LOCAL_RANK", "0")))
        except (KeyError, ValueError) as error:
            raise OtkdError(
                f"WORLD_SIZE is set, so RANK, MASTER_ADDR and MASTER_PORT must be too, all but the address as whole "
                f"numbers ({type(error).__name__}: {error}). Start the processes with torchrun, which sets all of "
                f"them, or unset WORLD_SIZE to train in one process."
            ) from None


@dataclass(frozen=True)
class Group:
    """The processes that share a trial. A world of 1, the default, does nothing at no cost.

    All processes have to call the same methods in the same order. Every method that needs the others raises
    `GroupError` when they do not answer.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where this process computes, and its tensors lie."""

    @classmethod
    def open(cls, place: Place, device: torch.device, timeout_s: float = TIMEOUT_S) -> Group:
        """Meet the others: by NCCL on CUDA, by gloo on a CPU.

        Args:
            device: `cuda` without an index is the GPU of this place.
            timeout_s: how long to wait for the others, now and at every exchange.

        Raises:
            OtkdError: there is no such rank, the process is in a group already, or the others do not come.
        """
        if not 0 <= place.rank < place.world:
            raise OtkdError(f"rank {place.rank} of {place.world} processes: ranks are 0 to {place.world - 1}.")
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", place.local_rank)
        if place.world > 1:
            _meet(place, device, timeout_s)
        return cls(place.rank, place.world, device)

    def close(self) -> None:
        """Leave the group."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def shard(self) -> Shard:
        """Which images of a batch are this process's."""
        return Shard(self.rank, self.world)

    def sizes(self, count: int) -> tuple[int, ...]:
        """How many of `count` images each process has."""
        parts = (Shard(rank, self.world).of(count) for rank in range(self.world))
        return tuple(part.stop - part.start for part in parts)

    def gather(
        self,
        out: ModelOutput,
        sizes: Sequence[int],
        *,
        features: Collection[str] | None = None,
        preacts: Collection[str] | None = None,
    ) -> ModelOutput:
        """The outputs for the whole batch, of everyone's outputs for their own images, by rank.

        Going backward, each process gets the gradient of its own images: nothing is summed, as everyone computes the
        same loss. Maps come back channels last, as the engine trains. Logits and embedding always travel.

        Args:
            sizes: images of each process; some may have none.
            features: taps whose maps are wanted; the others come back without images (0, C, H, W). None is all.
            preacts: the same for the maps before the last ReLU, by the names of their taps.

        Raises:
            ValueError: this process has another number of images than `sizes` says.
        """
        if self.world == 1:
            return out
        if len(out.logits) != sizes[self.rank]:
            raise ValueError(f"rank {self.rank} has outputs of {len(out.logits)} images, not of {sizes[self.rank]}")
        maps = [*_wanted(out.features, out.taps, features), *_wanted(out.preacts, out.taps[1:], preacts)]
        chosen = [out.logits, out.embedding, *(tensor for tensor, wanted in maps if wanted)]
        logits_BK, embedding_BD, *gathered = _Gather.apply(self, tuple(sizes), *chosen)
        rest = iter(gathered)
        whole = tuple(next(rest) if wanted else tensor[:0] for tensor, wanted in maps)
        cut = len(out.features)
        return out._replace(logits=logits_BK, embedding=embedding_BD, features=whole[:cut], preacts=whole[cut:])

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make each gradient that of the whole batch. For the network's parameters; an objective's are so already."""
        own = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter, gradient in zip(own, self.summed([p.grad for p in own], own), strict=True):
            parameter.grad = gradient

    @torch.no_grad()
    def summed(self, tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
        """The sum of each tensor over all processes, as new tensors.

        Args:
            tensors: in the same order everywhere. None counts as zero; it stays None where everyone has None.
            like: tensors of the same shapes and types; sums lie in memory as these do.
        """
        if self.world == 1:
            return list(tensors)
        sums: dict[int, Tensor | None] = {}
        for bucket in _buckets(like):
            sums |= zip(bucket, _bucket_sum([tensors[i] for i in bucket], [like[i] for i in bucket]), strict=True)
        return [sums[index] for index in range(len(tensors))]

    @torch.no_grad()
    def broadcast(self, module: nn.Module) -> None:
        """Give everyone the parameters and buffers of rank 0."""
        tensors = [*module.parameters(), *module.buffers()]
        if self.world == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensors[index].reshape(-1) for index in bucket])
            with answered():
                dist.broadcast(flat.view(torch.uint8), 0)
            for index, part in zip(bucket, flat.split([tensors[index].numel() for index in bucket]), strict=True):
                tensors[index].copy_(part.view_as(tensors[index]))

    @torch.no_grad()
    def average_buffers(self, module: nn.Module) -> None:
        """Replace every floating buffer by its mean over all processes: for running statistics of own images alone."""
        buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        for buffer, total in zip(buffers, self.summed(buffers, buffers), strict=True):
            if total is not None:
                buffer.copy_(total / self.world)

    def mean_over_ranks(self, values: Sequence[float]) -> list[float]:
        """The mean of each number over all processes. A GPU is waited for."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        with answered():
            dist.all_reduce(total)
        return (total / self.world).tolist()

    def same_on_all(self, value: str, what: str) -> None:
        """Hold `value` against that of rank 0.

        Args:
            what: what it is, for the message.

        Raises:
            TrialError: somewhere it is another; raised everywhere.
        """
        if self.world == 1:
            return
        own = torch.frombuffer(bytearray(hashlib.sha256(value.encode()).digest()), dtype=torch.int64).to(self.device)
        all_WX = of_everyone(own)
        others = torch.nonzero((all_WX != all_WX[0]).any(1))[:, 0].tolist()
        if others:
            raise TrialError(
                f"{what}: rank 0 has another than rank {', '.join(map(str, others))}; all {self.world} processes of a "
                f"trial should have the same. Are versions of otkd and torch, data and hardware the same everywhere? "
                f"Run the same command again: training goes on from the last checkpoint. If it comes back, train in "
                f"one process and report it."
            )

    def check_same(self, module: nn.Module, what: str) -> None:
        """Hold a module's parameters and buffers, bit for bit, against those of rank 0.

        Raises:
            TrialError: they have drifted apart; raised everywhere.
        """
        if self.world > 1:
            self.same_on_all(digest(module), what)


def digest(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers."""
    content = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        content.update(name.encode())
        content.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return content.hexdigest()


def of_everyone(own_X: Tensor) -> Tensor:
    """The vectors (W, X) of all W processes, by rank."""
    world = dist.get_world_size()
    all_X = own_X.new_empty(world * len(own_X))
    with answered():
        dist.all_gather_into_tensor(all_X, own_X)
    return all_X.view(world, len(own_X))


class _Gather(torch.autograd.Function):
    """Everyone's rows of some tensors, by rank; the gradient of one's own rows."""

    @staticmethod
    def forward(ctx: Any, group: Group, sizes: tuple[int, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        begin = sum(sizes[: group.rank])
        ctx.own = slice(begin, begin + sizes[group.rank])
        gathered: dict[int, Tensor] = {}
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
            gathered |= zip(places, _gathered([tensors[place] for place in places], sizes), strict=True)
        return tuple(gathered[place] for place in range(len(tensors)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, *(None if grad is None else grad[ctx.own] for grad in grads)


def _gathered(tensors: list[Tensor], sizes: tuple[int, ...]) -> list[Tensor]:
    """Tensors of one type from everyone, in one message: all of the first one's rows, of the second one's, …"""
    rows = [_channels_last(tensor) for tensor in tensors]
    padded = [F.pad(row, [0, 0] * (row.dim() - 1) + [0, max(sizes) - len(row)]) for row in rows]
    own = torch.cat([block.reshape(-1) for block in padded])
    parts = of_everyone(own).split([block.numel() for block in padded], dim=1)
    blocks = [part.view(len(sizes), *block.shape) for part, block in zip(parts, padded, strict=True)]
    whole = [torch.cat([of_rank[:size] for of_rank, size in zip(block, sizes, strict=True)]) for block in blocks]
    return [row.permute(0, 3, 1, 2) if row.dim() == 4 else row for row in whole]


def _channels_last(tensor: Tensor) -> Tensor:
    """Maps as (B, H, W, C): their order in memory as the engine trains, so that packing copies no more than it must."""
    return tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor


def _wanted(maps: Sequence[Tensor], taps: Sequence[str], wanted: Collection[str] | None) -> list[tuple[Tensor, bool]]:
    """Each map, and whether it is wanted; `maps` may be empty where a network does not show them."""
    return [(tensor, wanted is None or tap in wanted) for tensor, tap in zip(maps, taps, strict=False)]


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """Places of tensors of one type that travel together: up to `BUCKET` numbers, or one larger tensor."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        bucket: list[int] = []
        size = 0
        for place in (place for place, tensor in enumerate(tensors) if tensor.dtype == dtype):
            if bucket and size + tensors[place].numel() > BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(place)
            size += tensors[place].numel()
        yield bucket


def _bucket_sum(tensors: list[Tensor | None], like: list[Tensor]) -> list[Tensor | None]:
    own = [torch.zeros_like(shape) if t is None else t for t, shape in zip(tensors, like, strict=True)]
    present = own[0].new_tensor([tensor is not None for tensor in tensors])
    flat = torch.cat([present, *(tensor.reshape(-1) for tensor in own)])
    with answered():
        dist.all_reduce(flat)
    counts, *parts = flat.split([len(own), *(tensor.numel() for tensor in own)])
    missing = any(tensor is None for tensor in tensors)  # only then does a GPU have to be waited for
    somewhere = counts.tolist() if missing else [1.0] * len(own)
    sums = [torch.empty_like(shape).copy_(part.view_as(shape)) for part, shape in zip(parts, like, strict=True)]
    return [total if count else None for total, count in zip(sums, somewhere, strict=True)]


def _meet(place: Place, device: torch.device, timeout_s: float) -> None:
    if dist.is_initialized():
        raise OtkdError("this process belongs to a group of processes already; close that one first.")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if place.file:
        os.environ.update(GLOO_SOCKET_IFNAME="lo", NCCL_SOCKET_IFNAME="lo")
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=place.url,
            rank=place.rank,
            world_size=place.world,
            timeout=timedelta(seconds=timeout_s),
            device_id=device if device.type == "cuda" else None,
        )
    except (RuntimeError, ValueError) as error:
        raise OtkdError(
            f"rank {place.rank} of {place.world} did not meet the others at {place.url} within {timeout_s:g} s "
            f"({_first_line(error)}). Start {place.world} processes, each with its own RANK, and see that the address "
            f"can be reached and the port is free. GLOO_SOCKET_IFNAME (on GPUs NCCL_SOCKET_IFNAME) names the network "
            f"interface to use."
        ) from error


@contextmanager
def answered() -> Iterator[None]:
    """Around an exchange: an error in it becomes `GroupError`, which says what it means."""
    try:
        yield
    except RuntimeError as error:
        raise GroupError(
            f"rank {dist.get_rank()} of {dist.get_world_size()}: another process of this trial has died or no longer "
            f"answers ({_first_line(error)}). What it printed last says why. Run the same command again: training goes "
            f"on from the last checkpoint."
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
