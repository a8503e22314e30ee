"""One of several processes that train together: every check compares with what this process computes alone.

    python distributed_worker.py FOLDER CHECK …

writes FOLDER/<rank>.json, check → what went wrong, empty where nothing did. The place comes from the environment.
"""

import copy
import json
import os
import pickle
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from otkd.core import plugins
from otkd.core.errors import TrialError
from otkd.core.output import Batch, ModelOutput
from otkd.losses.base import Probe
from otkd.losses.objective import Objective
from otkd.models.factory import create
from otkd.train import distributed
from otkd.train.batchnorm import synchronised
from otkd.train.distributed import Group, GroupError, Place, digest

CLASSES = 7
COUNTS = (13, 2, 13)
"""Images of each step's batch: 2 leave a third process without any."""
OBJECTIVES = {
    "kd": {"ce": {"weight": 0.1}, "kd": {"weight": 0.9}},
    "fitnet": {"ce": {}, "fitnet": {}},
    "transport": {"ce": {}, "transport": {}},
    "rkd": {"ce": {}, "rkd": {}},
    "crd": {"ce": {}, "crd": {"negatives": 5, "width": 9}},
}
ALONE = Group()


class Trained(NamedTuple):
    losses: list[float]
    gradients: dict[str, torch.Tensor]
    """Of the last step."""
    weights: dict[str, torch.Tensor]
    """The network's and the objective's."""


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def batch_of(count, step, dtype):
    generator = seeded(step)
    image = torch.randn(count, 3, 12, 12, generator=generator, dtype=torch.float64).to(dtype)
    return Batch(image, torch.randint(CLASSES, (count,), generator=generator), torch.arange(count) + step)


def build(objective, dtype):
    student, teacher = (create(name, classes=CLASSES, channels=3, seed=3) for name in ("resnet8", "resnet14"))
    image = batch_of(2, 9, torch.float32).image
    with torch.no_grad():
        probe = Probe(student.eval()(image), teacher.eval()(image), CLASSES, labels_N=torch.arange(20) % CLASSES)
    terms = {name: plugins.configure("losses", name, options).model_dump() for name, options in objective.items()}
    parts = [student.train(), teacher.requires_grad_(False), Objective(terms, probe, seed=1).train()]
    return [part.to(dtype).to(memory_format=torch.channels_last) for part in parts]


def train(group, objective, dtype):
    """The engine's loop in small: shards in, whole outputs into the objective, gradients summed."""
    student, teacher, terms = build(objective, dtype)
    if group.world > 1:
        synchronised(student)
    if group.rank:
        next(student.parameters()).data.zero_()
    group.broadcast(student)
    losses = []
    for step, count in enumerate(COUNTS):
        batch = batch_of(count, step, dtype)
        own = batch.image[group.shard.of(count)].contiguous(memory_format=torch.channels_last)
        out_s = group.gather(student(own), group.sizes(count))
        out_t = group.gather(teacher(own), group.sizes(count))
        output = terms(out_s, out_t, batch)
        student.zero_grad()
        terms.zero_grad()
        output.loss.backward()
        group.sum_gradients(student.parameters())
        descend([*student.parameters(), *terms.parameters()])
        losses.append(output.loss.item())
    group.check_same(student, "the student")
    gradients = {name: p.grad for module in (student, terms) for name, p in module.named_parameters()}
    return Trained(losses, gradients, {**student.state_dict(), **terms.state_dict()})


@torch.no_grad()
def descend(parameters):
    for parameter in parameters:
        parameter.sub_(parameter.grad, alpha=0.02)


def exact(objective):
    """In double precision everything is the same to nine digits; the objective's value itself is in single."""

    def check(group):
        shared, alone = (train(g, OBJECTIVES[objective], torch.float64) for g in (group, ALONE))
        torch.testing.assert_close(shared.losses, alone.losses, rtol=1e-6, atol=0)
        assert all(gradient is not None for gradient in shared.gradients.values())
        torch.testing.assert_close(shared.gradients, alone.gradients, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(shared.weights, alone.weights, rtol=1e-9, atol=1e-9)

    return check


def single(objective):
    """In single precision rounding may open a ReLU here and not there, which shows in weights and gradients."""

    def check(group):
        shared, alone = (train(g, OBJECTIVES[objective], torch.float32) for g in (group, ALONE))
        torch.testing.assert_close(shared.losses, alone.losses, rtol=1e-4, atol=0)
        torch.testing.assert_close(shared.weights, alone.weights, rtol=1e-3, atol=1e-3)

    return check


def some_output(count, dtype=torch.float32):
    generator = seeded(5)
    shapes = [(7,), (5,), (3, 4, 5), (2, 3, 2), (2, 3, 2)]
    logits, embedding, stem, stage, preact = (torch.randn(count, *shape, generator=generator) for shape in shapes)
    return ModelOutput(logits.to(dtype), embedding, (stem, stage.to(dtype)), (preact,), ("stem", "stage1"))


def change(out, function):
    features, preacts = (tuple(map(function, maps)) for maps in (out.features, out.preacts))
    return ModelOutput(function(out.logits), function(out.embedding), features, preacts, out.taps)


def tensors_of(out):
    return [out.logits, out.embedding, *out.features, *out.preacts]


def check_gather(group):
    """Several types, maps and rows, any sizes; each gradient is that of one's own images."""
    for sizes in (group.sizes(13), group.sizes(1), tuple(3 * rank + 1 for rank in range(group.world))):
        whole = some_output(sum(sizes), torch.bfloat16)
        begin = sum(sizes[: group.rank])
        own = change(whole, lambda t, a=begin, b=begin + sizes[group.rank]: t[a:b].clone().requires_grad_())
        out = group.gather(own, sizes)
        assert all(torch.equal(a, b) for a, b in zip(tensors_of(out), tensors_of(whole), strict=True))
        assert out.features[0].is_contiguous(memory_format=torch.channels_last)
        sum((t.float() ** 3).sum() for t in tensors_of(out)).backward()
        for tensor in tensors_of(own):
            truth = (3 * tensor.detach().float() ** 2).to(tensor.dtype)
            torch.testing.assert_close(tensor.grad, truth, rtol=1e-2, atol=1e-2)


def check_gather_some(group):
    """Maps that nobody wants do not travel, and cannot be mistaken for the whole batch."""
    whole = some_output(7)
    own = change(whole, lambda t: t[group.shard.of(7)].requires_grad_())
    out = group.gather(own, group.sizes(7), features=["stage1"], preacts=[])
    assert torch.equal(out.features[1], whole.features[1])
    assert torch.equal(out.logits, whole.logits)
    assert [tuple(tensor.shape) for tensor in (out.features[0], *out.preacts)] == [(0, 3, 4, 5), (0, 2, 3, 2)]
    assert torch.equal(group.gather(own, group.sizes(7), features=[], preacts=["stage1"]).preacts[0], whole.preacts[0])
    out.features[1].sum().backward()
    assert own.logits.grad is own.features[0].grad is None
    assert bool((own.features[1].grad == 1).all())


def check_gather_sizes(group):
    with pytest.raises(ValueError, match="not of 3"):
        group.gather(some_output(4), [3] * group.world)


def check_sums(group):
    """A gradient that is None here and not there counts as zero; None everywhere stays None."""
    parameters = [nn.Parameter(torch.zeros(2, 3, 2, 2)), nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(1))]
    parameters[0].data = parameters[0].data.contiguous(memory_format=torch.channels_last)
    parameters.append(nn.Parameter(torch.zeros(3, dtype=torch.float64)))
    parameters.append(nn.Parameter(torch.zeros(2), requires_grad=False))
    values = torch.arange(24.0).view(2, 3, 2, 2)
    parameters[0].grad = values * (group.rank + 1)
    parameters[1].grad = torch.ones(1).expand(5) if group.rank == 1 else None
    parameters[3].grad = torch.full((3,), 0.1, dtype=torch.float64)
    group.sum_gradients(parameters)
    assert torch.equal(parameters[0].grad, values * sum(range(1, group.world + 1)))
    assert parameters[0].grad.stride() == parameters[0].stride()
    assert torch.equal(parameters[1].grad, torch.ones(5))
    assert parameters[2].grad is None
    torch.testing.assert_close(parameters[3].grad, torch.full((3,), 0.1 * group.world, dtype=torch.float64))


def check_buckets(group):
    """Small and large tensors of two types in several messages: none is lost, none doubled."""
    distributed.BUCKET, usual = 10, distributed.BUCKET
    sizes = [3, 5, 4, 7, 23, 1, 10]
    tensors = [torch.full((size,), float(i), dtype=torch.float64 if i % 3 else None) for i, size in enumerate(sizes)]
    sums = group.summed(tensors, tensors)
    distributed.BUCKET = usual
    torch.testing.assert_close(sums, [tensor * group.world for tensor in tensors], rtol=0, atol=0)


def check_broadcast(group):
    module = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
    module.register_buffer("flags", torch.tensor([group.rank == 0, False, True]))
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dtype != torch.bool:
            tensor.data.fill_(group.rank + 1)
    group.broadcast(module)
    assert all(bool((tensor == 1).all()) for name, tensor in module.state_dict().items() if name != "flags")
    assert module.flags.tolist() == [True, False, True]
    group.check_same(module, "the module")


def check_agreement(group):
    """Everyone hears that somebody differs, and who."""
    group.same_on_all("the same", "a word")
    module = nn.Linear(2, 1)
    module.weight.data.fill_(1.0)
    module.bias.data.fill_(1e-7 if group.rank == 1 else 0.0)
    with pytest.raises(TrialError, match="the student's weights: rank 0 has another than rank 1;"):
        group.check_same(module, "the student's weights")


def check_means(group):
    got = group.mean_over_ranks([float(group.rank), 2.5])
    assert got == [(group.world - 1) / 2, 2.5]


NORMS = {
    "2d": lambda: nn.BatchNorm2d(3),
    "1d": lambda: nn.BatchNorm1d(3),
    "rows": lambda: nn.BatchNorm1d(3),
    "cumulative": lambda: nn.BatchNorm2d(3, momentum=None),
    "plain": lambda: nn.BatchNorm2d(3, affine=False, eps=0.1),
    "forgetful": lambda: nn.BatchNorm2d(3, track_running_stats=False),
}
SHAPES = {"1d": (3, 5), "rows": (3,)}


def check_norm(group):
    """Outputs, gradients and running statistics of the whole batch; a mean far from zero loses no digits."""
    for name, make in NORMS.items():
        torch.manual_seed(4)
        alone, shared = make().double(), synchronised(nn.Sequential(make().double()))[0]
        for parameter in alone.parameters():
            nn.init.uniform_(parameter, 0.5, 2.0)
        shared.load_state_dict(alone.state_dict())
        for count in (11, 2, 5):
            x = torch.randn(count, *SHAPES.get(name, (3, 4, 5)), generator=seeded(count), dtype=torch.float64)
            x = x * torch.tensor([1.0, 0.1, 10.0]).view(1, 3, *[1] * (x.dim() - 2)) + 100
            part = group.shard.of(count)
            whole, own = x.clone().requires_grad_(), x[part].clone().requires_grad_()
            y, y_own = alone(whole), shared(own)
            weights = torch.randn(y.shape, generator=seeded(1), dtype=torch.float64)
            alone.zero_grad(), shared.zero_grad()
            (y * weights).sum().backward(), (y_own * weights[part]).sum().backward()
            group.sum_gradients(shared.parameters())
            torch.testing.assert_close(y_own, y[part], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(own.grad, whole.grad[part], rtol=1e-8, atol=1e-8)
            for mine, truth in zip(shared.parameters(), alone.parameters(), strict=True):
                torch.testing.assert_close(mine.grad, truth.grad, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(shared.state_dict(), alone.state_dict(), rtol=1e-11, atol=1e-11)
        alone.eval(), shared.eval()
        if name != "forgetful":
            torch.testing.assert_close(shared(x), alone(x), rtol=1e-9, atol=1e-9)


def check_norm_single(group):
    """Single precision is as good as torch's own at a mean of a thousand deviations; half precision stays half."""
    alone, shared = nn.BatchNorm2d(3), synchronised(nn.Sequential(nn.BatchNorm2d(3)))[0]
    x = torch.randn(13, 3, 9, 9, generator=seeded(0)) + 1000
    truth = nn.BatchNorm2d(3).double()(x.double())
    error = (alone(x) - truth).abs().max()
    assert (shared(x[group.shard.of(13)]) - truth[group.shard.of(13)]).abs().max() < 2 * error + 1e-4
    torch.testing.assert_close(shared.running_var, alone.running_var, rtol=1e-4, atol=0)
    half = x[group.shard.of(13)].sub(1000).bfloat16().requires_grad_()
    shared(half).sum().backward()
    assert shared(half).dtype == half.grad.dtype == torch.bfloat16
    assert shared.weight.grad.dtype == torch.float32


def check_norm_kept(group):
    """Copies and pickles go on being synchronised; state dicts fit both ways; in eval mode no one is asked."""
    plain = create("resnet8", classes=CLASSES, channels=3, seed=0)
    names, norms = list(plain.state_dict()), plain.norms
    model = synchronised(plain)
    assert (list(model.state_dict()), model.norms) == (names, norms)
    assert synchronised(model) is model
    image = batch_of(6, 0, torch.float32).image
    truth = create("resnet8", classes=CLASSES, channels=3, seed=0).train()(image).logits[group.shard.of(6)]
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin.train()(image[group.shard.of(6)]).logits, truth, rtol=1e-4, atol=1e-4)
    if group.rank == 0:
        model.eval()(image)


def check_averages(group):
    """Without synchronisation each process normalises its own images; running statistics are then averaged."""
    x = torch.randn(13, 3, 4, 4, generator=seeded(8))
    alone = [nn.BatchNorm2d(3) for _ in range(group.world)]
    for rank, norm in enumerate(alone):
        norm(x[group.shard._replace(rank=rank).of(13)])
    mine = alone[group.rank]
    truth = torch.stack([norm.running_var for norm in alone]).mean(0)
    group.average_buffers(mine)
    torch.testing.assert_close(mine.running_var, truth)
    assert int(mine.num_batches_tracked) == 1
    group.same_on_all(digest(mine), "batch norm")


def check_death(group):
    """Must be the last: the last process leaves without a word."""
    if group.rank == group.world - 1:
        os._exit(0)
    with pytest.raises(GroupError, match=rf"rank {group.rank} of {group.world}.* checkpoint"):
        group.mean_over_ranks([1.0])


CHECKS = {
    **{f"train_{name}": exact(name) for name in OBJECTIVES},
    **{f"single_{name}": single(name) for name in ("kd", "fitnet", "rkd")},
    **{name[6:]: function for name, function in list(globals().items()) if name.startswith("check_")},
}


def main(folder, names):
    torch.set_num_threads(1)
    group = Group.open(Place.from_environment(), torch.device("cpu"), timeout_s=60)
    found = {}
    for name in names:
        if name == "death":
            (folder / f"{group.rank}.json").write_text(json.dumps({**found, "death": ""}))
        try:
            CHECKS[name](group)
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()
    (folder / f"{group.rank}.json").write_text(json.dumps(found))
    os._exit(0)  # others may be gone, so that the group cannot be closed


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
