"""Exact salience of every parameter: the change of the loss when the parameter alone is set to zero.

One forward pass per parameter would do, but LeNet-5 has 61,706 parameters. Zeroing one parameter changes a single unit or
channel of one layer, so everything before the layer, and the rest of the layer, stays the same. For a batch of images, the
activations are computed once. The changes of one channel under all of its parameters are computed together and propagated
through the following layers as columns of matrix products (``propagation.py``; ``sequential.py`` turns a model into steps).
Where only linear layers and ReLUs follow, a processor does not propagate: the change of the logits is linear but for the few
gates that switch (``_engine/changes.py``). The loss change of each image is computed directly from the change of its logits,
never as a difference of two losses. Several workers compute changes at once, each for other images or channels.

Other networks are computed by ablation, one parameter after another (``ablation.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snipnb._checks import (
    Salience,
    check_alike_and_precise,
    check_classes,
    check_examples,
    flat_indices,
    float_parameters,
)
from snipnb._engine.compiled import compiled_module, runs_compiled
from snipnb._engine.cumulants import loss_changes
from snipnb._engine.heads import Head
from snipnb._engine.propagation import ALL, Gate, Mix, Own, Saved, Scratch, Step
from snipnb._engine.sequential import check_finite, layers_of, steps_of
from snipnb._engine.workers import Crew
from snipnb._progress import track
from snipnb.saliences.ablation import ablated

# How many numbers one temporary holds: on a processor about as many as its caches, on a GPU enough to keep it busy.
TEMPORARY = {"cpu": 2**24, "cuda": 2**26}
PAIRS = {"cpu": 2**15, "cuda": 2**20}  # (parameter, image) pairs at once, at most
LINEAR = {"cpu": 2**12, "cuda": 2**20}  # pairs that linear layers take at once
TOGETHER = {"cpu": 128, "cuda": 1024}  # images at once, at most: the innermost, contiguous axis
MOST_SAVED = 2**26  # numbers saved per batch of images: their activations
IMAGES = 1000  # images per batch, at most


@torch.no_grad()
def exact_salience(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    parameters: Mapping[str, Tensor] | None = None,
) -> Salience:
    """Exact salience of every parameter, or of chosen ones, over all given images.

    **Definition.** e_j = L(w with w_j = 0) - L(w), with L the mean cross-entropy over all of ``images`` and the other
    parameters as they are. Signed: negative where the loss falls without w_j. Ranking is by abs(e_j).

    **Source.** Write-up, section 1. **Departs from** its code, which takes the difference of two float32 mean losses on
    one mini-batch and resolves 1.2e-7 of the loss. Here the change is computed image by image without cancellation. So a
    salience of any size has the digits of its dtype, and it is exactly zero where nothing changes.

    Args:
        model: Any module that returns logits [n, classes]; float32 or float64, on any device. It is used in evaluation mode, whatever
            its own mode is. The fast way covers ``nn.Sequential`` (nested ones too) of Conv2d, Linear, ReLU, MaxPool2d, AvgPool2d, Flatten,
            Dropout, Identity, BatchNorm1d and BatchNorm2d, ending in logits or LogSoftmax. Any other network takes a pass per
            parameter, in float64 where it can; there, give ``parameters``.
        images: Inputs [n, ...], in the model's dtype, or integers; on any device.
        labels: Classes, integers [n] in [0, C).
        parameters: Name -> flat indices into the parameter tensor, as from :func:`snipnb.stratified_sample`; default all
            parameters. The cost is proportional to the number of parameters, except for the forward pass of each batch.

    Returns:
        Dictionary name -> signed salience in the parameter's shape, or, for ``parameters``, in the order of the given
        indices; on the model's device, in its dtype.

    Raises:
        ValueError: If the model is in half precision or does not fit the images; if images, labels or indices are not as described
            above; if all parameters of a network that the fast way does not cover would take very long. The message says how long, and
            which layer is not covered.

    Example:
        >>> import snipnb
        >>> images, labels = snipnb.load_mnist("test", sample=True)
        >>> some = {"full1.weight": torch.tensor([0, 48_000 - 1])}
        >>> snipnb.exact_salience(snipnb.lenet5(), images[:100], labels[:100], parameters=some)["full1.weight"].shape
        torch.Size([2])
    """
    tensors = float_parameters(model)
    check_examples(images, labels)
    wanted = flat_indices(tensors, parameters)
    try:
        layers_of(model)
    except ValueError as error:
        check_alike_and_precise(tensors, images, integers=True)
        found = ablated(model, images, labels, wanted, everything=parameters is None, why=str(error))
        return _result(found, tensors, parameters)
    first = check_alike_and_precise(tensors, images)
    steps = steps_of(model, images.shape[1:])
    tasks = [task for k in range(len(steps)) if (task := _task(steps, k, wanted)) is not None]
    probe = _Batch.of(steps, images[:1].to(first.device), labels[:1].to(first.device))
    check_classes(probe.log_p.T, labels)

    size = _batch_size(steps, probe)
    parts = [(start, task) for start in range(0, len(images), size) for task in tasks]
    batch = probe
    with Crew(1 if first.is_cuda else torch.get_num_threads()) as crew:
        for start, task in track(parts, "exact salience", total=len(parts)):
            if task is tasks[0]:
                some = slice(start, start + size)
                batch = _Batch.of(steps, images[some].to(first.device), labels[some].to(first.device))
            task.add(batch, crew)

    found = {name: torch.zeros(len(index)) for name, index in wanted.items()}  # of a parameter that no layer uses
    for task in tasks:
        found |= task.result(len(images))
    return _result(found, tensors, parameters)


def _result(found: Salience, tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor] | None) -> Salience:
    """In the parameters' shapes and dtype; for chosen parameters, a vector in the order of their indices."""
    if parameters is None:
        return {name: found[name].view_as(p).to(p) for name, p in tensors.items()}
    return {name: found[name].to(tensors[name]) for name in parameters}


@dataclass
class _Batch:
    """Some images, with everything that the steps keep from them."""

    saved: list[Saved]  # of each step
    log_p: Tensor  # [classes, images]
    labels: Tensor

    @classmethod
    def of(cls, steps: list[Step], images: Tensor, labels: Tensor) -> _Batch:
        a = (images.flatten(2).permute(2, 1, 0)[:, None] if images.dim() == 4 else images.T[None, None]).contiguous()
        everything = []
        for step in steps:
            a, saved = step.forward(a)
            everything.append(saved)
        logits = a.reshape(-1, a.shape[-1])
        check_finite(logits)
        return cls(everything, logits.log_softmax(0), labels.long())

    def part(self, images: slice) -> _Batch:
        """The same for some of its images."""
        saved = [tuple(t[..., images] for t in of_step) for of_step in self.saved]
        return _Batch(saved, self.log_p[:, images], self.labels[images])


def _batch_size(steps: list[Step], one: _Batch) -> int:
    """Images per batch, so that what is saved from them stays bounded; ``one`` is a batch of a single image."""
    saved = sum(t.numel() for saved in one.saved for t in saved)
    inside = max(step.rows(getattr(step, "inputs", 1)) for step in steps)
    return max(1, min(IMAGES, MOST_SAVED // (saved + 2 * inside)))


# --- the parameters of one step ---------------------------------------------------------------------------------------


def _task(steps: list[Step], k: int, wanted: Mapping[str, Tensor]) -> _Task | None:
    """The task for step k, or None if none of its parameters is wanted."""
    own = steps[k].own
    if own is None or not any(name in wanted and len(wanted[name]) for name in own.names):
        return None
    head = Head.after(steps, k) if runs_compiled("changes", own.values) else None
    return _Task(steps, k, own, wanted) if head is None else _BeforeHead(steps, k, own, wanted, head)


def _kind(tensor: Tensor) -> str:
    return "cuda" if tensor.is_cuda else "cpu"


class _Task:
    """The wanted parameters of one step, by channel, with their sums over images so far.

    The changes of one channel are propagated through the layers, as columns of matrix products.
    """

    def __init__(self, steps: list[Step], k: int, own: Own, wanted: Mapping[str, Tensor]) -> None:
        self.steps, self.k, self.own = steps, k, own
        device, (channels, columns) = own.values.device, own.values.shape
        self.wanted, grid = {}, torch.zeros(channels, columns, dtype=torch.bool)
        first = 0
        for name, count in zip(own.names, own.columns, strict=True):
            if name in wanted:
                place = wanted[name] // count * columns + first + wanted[name] % count
                grid.view(-1)[place] = True
                self.wanted[name] = place.to(device)
            first += count
        self.sums = torch.zeros(channels, columns, dtype=torch.float64, device=device)
        self.channels = [int(o) for o in grid.any(1).nonzero()]
        everything = torch.arange(columns, device=device)  # one tensor: factors are shared
        self.columns = {
            o: everything if bool(grid[o].all()) else grid[o].nonzero()[:, 0].to(device) for o in self.channels
        }

    def result(self, images: int) -> Salience:
        return {name: self.sums.view(-1)[place] / images for name, place in self.wanted.items()}

    def add(self, batch: _Batch, crew: Crew) -> None:
        kind = _kind(self.sums)
        rows, inputs = [batch.saved[self.k][0].shape[0]], 1
        for step in self.steps[self.k + 1 :]:
            rows.append(step.rows(inputs))
            inputs = step.outputs if isinstance(step, Mix) else inputs
        pairs = max(1, min(PAIRS[kind], TEMPORARY[kind] // max(rows)))
        images = min(TOGETHER[kind], pairs)
        parts = [batch.part(slice(start, start + images)) for start in range(0, batch.log_p.shape[1], images)]
        groups = min(len(self.channels), -(-crew.size // len(parts)))
        jobs = [(part, self.channels[first::groups]) for part in parts for first in range(groups)]
        for sums in crew.map(lambda job, scratch: self._sums(*job, pairs // images, scratch), jobs):
            self.sums += sums  # in the order of the jobs, whichever worker did them

    def _sums(self, part: _Batch, channels: list[int], together: int, scratch: Scratch) -> Tensor:
        """Sums over the images of ``part`` for the wanted parameters of some channels, else 0: [channels, columns]."""
        sums = torch.zeros_like(self.sums)
        factors, of = None, None
        for o in channels:
            columns = self.columns[o]
            if factors is None or not (isinstance(self.steps[self.k], Mix) and of is columns):
                factors, of = self.steps[self.k].factors(part.saved[self.k], o, columns), columns
            for first in range(0, len(columns), together):
                some = slice(first, first + together)
                changes = self._changes(part, o, columns[some], factors[:, :, some], scratch)
                sums[o].index_add_(0, columns[some], changes.sum(1, dtype=torch.float64))
        return sums

    def _changes(self, part: _Batch, o: int, columns: Tensor, factors: Tensor, scratch: Scratch) -> Tensor:
        """Loss changes [columns, images] for parameters of channel ``o``."""
        values, channels = -self.own.values[o, columns, None], slice(o, o + 1)
        following = list(zip(self.steps, part.saved, strict=True))[self.k + 1 :]
        if following:
            step, saved = following.pop(0)
            d, channels = step.change_of_product(factors, values, saved, channels, scratch)
        else:
            d = (factors * values).unsqueeze(2)
        while following and not following[0][0].is_linear_layer:
            step, saved = following.pop(0)
            gate = following[0][0] if following else None
            if isinstance(step, Mix) and isinstance(gate, Gate):
                saved = following.pop(0)[1]
                d, channels = step.change_and_gate(gate, d, saved, channels, scratch)
            else:
                d, channels = step.change(d, saved, channels, scratch)
        together = max(1, LINEAR[_kind(d)] // d.shape[4])
        dz = scratch.take(("logits",), (len(part.log_p), *d.shape[3:]), d)
        for some, into in zip(d.split(together, 3), dz.split(together, 1), strict=True):
            which = channels
            for step, saved in following:
                some, which = step.change(some, saved, which, scratch)
            if which != ALL:  # nothing mixed: other logits do not change
                into.zero_()
            into[which] = some[0, 0]
        return loss_changes(dz, part.log_p, part.labels)


class _BeforeHead(_Task):
    """A layer that only linear layers and ReLUs follow, computed by ``changes.py``."""

    def __init__(self, steps: list[Step], k: int, own: Own, wanted: Mapping[str, Tensor], head: Head) -> None:
        super().__init__(steps, k, own, wanted)
        self.head, self.changes = head, compiled_module("changes")
        lanes, sizes = self.changes.LANES, [len(c) for c in self.columns.values()]
        width = -(-max(sizes) // (2 * lanes)) * 2 * lanes
        more = {o: (0, width - size) for o, size in zip(self.columns, sizes, strict=True)}
        values = [F.pad(-own.values[o, c] * head.scale[o], more[o]) for o, c in self.columns.items()]
        places = [F.pad(head.layer.places_met(c), more[o]).transpose(0, 1) for o, c in self.columns.items()]
        if all(c is self.columns[self.channels[0]] for c in self.columns.values()):
            places = places[:1]
        first, *others = head.matrices
        first = first.unflatten(1, (own.values.shape[0], -1))[:, self.channels].flatten(1).T
        first = F.pad(_filled(first, lanes), (0, 0, 0, 4))
        rest = [_filled(_filled(m, lanes).T, lanes) for m in others]
        self.places, self.values = torch.stack(places), torch.stack(values)
        self.weights = first, torch.cat([first.new_zeros(0), *(m.flatten() for m in rest)])
        self.sizes = torch.tensor([m.shape[1] for m in (first, *rest)])

    def add(self, batch: _Batch, crew: Crew) -> None:
        images, together = batch.log_p.shape[1], TOGETHER["cpu"]
        parts = [batch.part(slice(start, start + together)) for start in range(0, images, together)]
        total = reduce(np.add, crew.map(lambda part, scratch: self._sums_of_part(part), parts))
        for row, (o, columns) in zip(torch.from_numpy(total), self.columns.items(), strict=True):
            self.sums[o, columns] += row[: len(columns)]

    def _sums_of_part(self, part: _Batch) -> np.ndarray:
        """Sums over the images of ``part`` [channels, columns]."""
        x, gate = self.head.layer.values_met(part.saved[self.k]).T, self.head.gate
        if gate is None:
            gap = x.new_zeros(len(x), len(self.channels), *self.places.shape[1:3])
            floor = x.new_full((*gap.shape[:2], 1, gap.shape[3]), -torch.inf)
        else:
            gap, floor = (t[:, :, self.channels].permute(3, 2, 1, 0) for t in part.saved[gate])
        saved = [part.saved[g] for g in self.head.gates]
        hidden = [_filled((gap - floor)[0, 0].T, self.changes.LANES) for gap, floor in saved]  # inputs of the gates
        given = [x, self.places, self.values, gap, floor[:, :, 0], *self.weights, self.sizes]
        given += [torch.cat([x.new_zeros(len(x), 0), *hidden], 1), part.log_p.T.exp(), part.log_p.T, part.labels]
        sums, arrays = np.zeros(self.values.shape), [t.contiguous().numpy() for t in given]
        self.changes.loss_changes(*arrays, *self.changes.series(arrays[0].dtype), sums)
        return sums


def _filled(t: Tensor, size: int) -> Tensor:
    """A matrix with columns of zeros added, up to a multiple of ``size``."""
    return F.pad(t, (0, -t.shape[1] % size))
