"""Networks that take every step on the same images, with pruned parameters held at zero (``Recipe.masks_at``): stacked, or one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from snipnb._checks import check_alike_and_precise, check_classes, check_examples, copied, float_parameters, in_mode
from snipnb._engine.ensembles import Kept, Stack, Stacked, check_alike, stacked, stretches
from snipnb._engine.sequential import layers_of
from snipnb.networks import seeded
from snipnb.pruning.masks import Mask, check_mask_fits
from snipnb.training.recipe import Recipe, learning_rate, optimiser_of
from snipnb.training.scores import error_rate

# How much is done at once: on a processor as much as its caches hold, on a GPU everything.
NETWORKS = {"cpu": 24, "cuda": 1024}
IMAGES = {"cpu": 64, "cuda": 1024}
SCORED = {"cpu": 48, "cuda": 1000}
SPARE = 64  # a multiple of what processors take at once
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")  # what PyTorch's optimisers keep of a parameter, by its names


def group_of(models: Sequence[nn.Module], masks: Sequence[Mask | None], recipes: Sequence[Recipe]) -> Together | Apart:
    """Networks that are to be trained: stacked if they are of the layers that can be, else one after another.

    Raises:
        ValueError: If models, masks and recipes do not go together.
    """
    if not models:
        raise ValueError("no models are given; there must be at least one")
    for model in models:
        float_parameters(model)  # an error if there are none
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError(
                f"the model ({type(model).__name__}) has no parameter that requires a gradient; it needs at least one"
            )
    places = [{t.data_ptr() for t in (*m.parameters(), *m.buffers()) if t.numel()} for m in models]
    if len(set().union(*places)) < sum(map(len, places)):
        raise ValueError("two models share a tensor, or a model is given twice; each must have its own tensors")
    for name, given in (("masks", masks), ("recipes", recipes)):
        if len(given) != len(models):
            raise ValueError(f"there must be as many {name} as models; got {len(given)} for {len(models)}")
    if len(common := {(r.epochs, r.batch_size) for r in recipes}) > 1:
        raise ValueError(f"recipes must have the same epochs and batch_size; got {sorted(common)}")
    for model, mask in zip(models, masks, strict=True):
        if mask is not None:
            check_mask_fits(model, mask)
    try:
        for model in models:
            layers_of(model)
    except ValueError:
        return Apart(models, masks, recipes)
    return Together(models, masks, recipes)


@torch.no_grad()
def set_to_zero(parameters: Mapping[str, Tensor], kept: Mask) -> None:
    """Set pruned parameters to zero."""
    for name, m in kept.items():
        parameters[name].masked_fill_(~m, 0)


class _Part:
    """A network and its optimiser.

    Args:
        number: Of the network, in the names of a state.
        recipe: Its recipe.
        trained: Its parameters by name.
        fused: Whether the optimiser is PyTorch's fused one.
    """

    def __init__(self, number: int, recipe: Recipe, trained: Mapping[str, Tensor], fused: bool | None = None) -> None:
        self.number, self.recipe, self.trained = number, recipe, trained
        self.optimiser = optimiser_of(recipe, trained.values(), fused=fused)

    def step(self) -> None:
        """Update all parameters by their gradients."""
        self.optimiser.step()

    def state(self) -> dict[str, Tensor]:
        """What the optimiser keeps of each parameter."""
        return {
            f"{kind} {self.number} {name}": tensor
            for name, p in self.trained.items()
            for kind, tensor in self.optimiser.state[p].items()
            if kind in (*MOMENTS, "step")
        }

    def restore(self, state: Mapping[str, Tensor], steps: int) -> None:
        for name, p in self.trained.items():
            keys = {kind: f"{kind} {self.number} {name}" for kind in (*MOMENTS, "step")}
            if found := {kind: state[key].to(p) for kind, key in keys.items() if key in state}:
                self.optimiser.state[p] = found  # nothing is kept of a parameter that the loss does not reach


class _Stretch(_Part):
    """Stacked networks that share a recipe, and their optimiser.

    The optimiser has all values in one tensor, with spare ones behind them: it treats the last few of a tensor in another way than the
    others, and each network is to come out as it would alone, to the last bit.

    Args:
        number: The first of the networks, in the names of a state.
        recipe: Their recipe.
        trained: Their parameters by name.
        gradients: Likewise.
    """

    def __init__(
        self, number: int, recipe: Recipe, trained: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
    ) -> None:
        self.named, self.gradients = trained, gradients
        sizes = [p.numel() for p in trained.values()]
        self.sizes = [*sizes, -sum(sizes) % SPARE]
        self.flat = next(iter(trained.values())).new_zeros(sum(self.sizes))
        self.gradient = self.flat.grad = torch.zeros_like(self.flat)
        super().__init__(number, recipe, {"all": self.flat}, fused=True)

    def _apart(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of the values of each parameter."""
        return {n: t.view_as(p) for (n, p), t in zip(self.named.items(), flat.split(self.sizes), strict=False)}

    def step(self) -> None:
        values, gradients = self._apart(self.flat), self._apart(self.gradient)
        for name, value in values.items():
            value.copy_(self.named[name])
            gradients[name].copy_(self.gradients[name])
        super().step()
        for name, value in values.items():
            self.named[name].copy_(value)

    def state(self) -> dict[str, Tensor]:
        kept = self.optimiser.state[self.flat]
        return {
            f"{kind} {self.number} {name}": tensor
            for kind in MOMENTS
            if kind in kept
            for name, tensor in self._apart(kept[kind]).items()
        }

    def restore(self, state: Mapping[str, Tensor], steps: int) -> None:
        found = {}
        for kind in MOMENTS:
            keys = [f"{kind} {self.number} {name}" for name in self.named]
            if keys[0] in state:
                found[kind] = torch.zeros_like(self.flat)
                for value, key in zip(self._apart(found[kind]).values(), keys, strict=True):
                    value.copy_(state[key])
        if isinstance(self.optimiser, torch.optim.Adam):
            found["step"] = torch.tensor(float(steps), device=self.flat.device)
        self.optimiser.state[self.flat] = found


class _Group:
    """Learning rates and saved states, for both kinds of groups."""

    parts: Sequence[_Part]

    def _named(self) -> dict[str, Tensor]:
        """Parameters and buffers by their names in a state."""
        raise NotImplementedError

    def set_rates(self, step: int, steps_per_epoch: int) -> None:
        for part in self.parts:
            part.optimiser.param_groups[0]["lr"] = learning_rate(part.recipe, step, steps_per_epoch)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next epoch depends on, except the number of epochs."""
        state = self._named()
        for part in self.parts:
            state |= part.state()
        return {key: tensor.detach().to("cpu", copy=True) for key, tensor in state.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Resume from a state that was saved after ``steps`` steps."""
        for key, tensor in self._named().items():
            tensor.copy_(state[key])
        for part in self.parts:
            part.restore(state, steps)


class Apart(_Group):
    """Networks that take every step one after another, through their own layers: any module that returns logits."""

    is_stacked = False

    def __init__(self, models: Sequence[nn.Module], masks: Sequence[Mask | None], recipes: Sequence[Recipe]) -> None:
        self.originals = models
        self.models = [copied(model) for model in models]  # an error leaves the models as they are
        self.device = next(models[0].parameters()).device
        self.masks = [{name: m.to(self.device) for name, m in (mask or {}).items()} for mask in masks]
        trained = [{n: p for n, p in m.named_parameters() if p.requires_grad} for m in self.models]
        self.parts = [_Part(k, r, own) for k, (r, own) in enumerate(zip(recipes, trained, strict=True))]
        for model, mask in zip(self.models, self.masks, strict=True):
            set_to_zero(dict(model.named_parameters()), mask)

    @torch.no_grad()
    def check(self, images: Tensor, labels: Tensor) -> None:
        """Raise ValueError unless images fit the networks, and labels their classes."""
        check_examples(images, labels)
        for model in self.models:
            check_alike_and_precise(float_parameters(model), images, integers=True)
            with in_mode(model, "eval"):
                check_classes(model(images[:1].to(self.device)), labels)

    @torch.enable_grad()
    def step(self, images: Tensor, labels: Tensor, *, seed: int) -> Tensor:
        """Do one step of every network on one batch; returns the mean losses before the step [networks]."""
        losses = []
        for model, part, mask in zip(self.models, self.parts, self.masks, strict=True):
            if part.recipe.masks_at == "start":
                set_to_zero(dict(model.named_parameters()), mask)
            model.train()
            with seeded(_mixed(seed, 0), self.device):
                loss = nn.functional.cross_entropy(model(images), labels)
            part.optimiser.zero_grad()
            loss.backward()
            for name, p in part.trained.items():
                if p.grad is not None and part.recipe.masks_at == "end" and name in mask:
                    p.grad.mul_(mask[name])
            part.step()
            losses.append(loss.detach().double())
        return torch.stack(losses)

    @torch.no_grad()
    def error_rates(self, images: Tensor, labels: Tensor) -> list[float]:
        """Fraction of images that each network gets wrong; NaN without images."""
        return [error_rate(model, images, labels) for model in self.models]

    def _named(self) -> dict[str, Tensor]:
        return {f"value {k} {name}": t for k, m in enumerate(self.models) for name, t in _values(m).items()}

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the values back into every model."""
        for original, model in zip(self.originals, self.models, strict=True):
            values = _values(model)
            for name, tensor in _values(original).items():
                tensor.copy_(values[name])
            original.eval()


def _values(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _mixed(seed: int, part: int) -> int:
    """A seed for one part of a step; mixed, because PyTorch's generator on a processor takes only the lowest 32 bits of a seed."""
    return int(np.random.SeedSequence((seed % 2**128, part)).generate_state(1)[0])


class Together(_Group):
    """Stacked parameters, gradients and optimiser state of networks that are trained together."""

    is_stacked = True

    def __init__(self, models: Sequence[nn.Module], masks: Sequence[Mask | None], recipes: Sequence[Recipe]) -> None:
        self.models, self.stack = models, Stack(models[0])
        first = dict(models[0].named_parameters())
        self.device = next(iter(first.values())).device
        for model in models:
            check_alike(model, models[0])
        self.parameters = stacked([dict(m.named_parameters()) for m in models])
        self.buffers = stacked([dict(m.named_buffers()) for m in models])
        self.masks: Stacked = {}
        late = torch.tensor([recipe.masks_at == "start" for recipe in recipes], device=self.device)
        self.has_late = any(late)
        for name, p in self.parameters.items():
            if any(mask is not None and name in mask for mask in masks):
                everything = torch.ones(p.shape[1:], dtype=torch.bool)
                kept = [everything if mask is None else mask.get(name, everything) for mask in masks]
                self.masks[name] = torch.stack([m.to(self.device) for m in kept])
        set_to_zero(self.parameters, self.masks)
        # What takes part in a step, and in scoring: everything where masks act at its start.
        self.kept = {name: m | late.view(-1, *(1,) * (m.dim() - 1)) for name, m in self.masks.items()}
        self.trained = {name: p for name, p in self.parameters.items() if first[name].requires_grad}
        self.gradients = {name: torch.zeros_like(p) for name, p in self.trained.items()}
        self.parts = [
            _Stretch(
                some.start,
                recipes[some.start],
                *({n: t[some] for n, t in of.items()} for of in (self.trained, self.gradients)),
            )
            for some in stretches(recipes)
        ]
        at_once = NETWORKS[self.device.type]
        self.blocks = [slice(k, k + at_once) for k in range(0, len(models), at_once)]
        self.kept_of = {b.start: Kept({n: kept[b] for n, kept in self.kept.items()}) for b in self.blocks}
        self.images = recipes[0].batch_size if self.stack.mixes_images else IMAGES[self.device.type]

    @torch.no_grad()
    def check(self, images: Tensor, labels: Tensor) -> None:
        """Raise ValueError unless images fit the networks, and labels their classes."""
        check_examples(images, labels)
        check_alike_and_precise(dict(self.models[0].named_parameters()), images)
        x = images[:1].to(self.device)
        logits = self.stack.logits(self.stack.inputs(x), *self._tensors_of(slice(1)))
        check_classes(logits[0].T, labels)

    def _tensors_of(self, some: slice) -> tuple[Stacked, Stacked]:
        """Parameters, detached, and buffers of some networks."""
        return {n: p[some].detach() for n, p in self.parameters.items()}, {n: b[some] for n, b in self.buffers.items()}

    @torch.enable_grad()
    def step(self, images: Tensor, labels: Tensor, *, seed: int) -> Tensor:
        """Do one step of every network on one batch; returns the mean losses before the step [networks]."""
        losses = torch.zeros(len(self.models), dtype=torch.float64, device=self.device)
        for gradient in self.gradients.values():
            gradient.zero_()
        if self.has_late:
            set_to_zero(self.parameters, self.masks)
        for part, (x, y) in enumerate(zip(images.split(self.images), labels.split(self.images), strict=True)):
            inputs = self.stack.inputs(x)
            for some in self.blocks:
                parameters, buffers = self._tensors_of(some)
                leaves = [parameters[name].requires_grad_() for name in self.trained]
                generator, kept = torch.Generator(self.device).manual_seed(_mixed(seed, part)), self.kept_of[some.start]
                logits = self.stack.logits(inputs, parameters, buffers, training=True, generator=generator, kept=kept)
                loss = nn.functional.cross_entropy(logits, y.expand(len(logits), -1), reduction="none").sum(1)
                gradients = torch.autograd.grad(loss.sum() / len(labels), leaves, materialize_grads=True)
                for total, gradient in zip(self.gradients.values(), gradients, strict=True):
                    total[some] += gradient
                losses[some] += loss.detach()
        for name, gradient in self.gradients.items():
            if name in self.kept:
                gradient.mul_(self.kept[name])
        for each in self.parts:
            each.step()
        return losses / len(labels)

    @torch.no_grad()
    def error_rates(self, images: Tensor, labels: Tensor) -> list[float]:
        """Fraction of images that each network gets wrong; NaN without images."""
        if len(labels) == 0:
            return [float("nan")] * len(self.models)
        wrong = torch.zeros(len(self.models), dtype=torch.int64, device=self.device)
        size = SCORED[self.device.type]
        for x, y in zip(images.split(size), labels.split(size), strict=True):
            inputs = self.stack.inputs(x)
            for some in self.blocks:
                logits = self.stack.logits(inputs, *self._tensors_of(some), kept=self.kept_of[some.start])
                wrong[some] += (logits.argmax(1) != y).sum(1)
        return (wrong.double() / len(labels)).tolist()

    def _named(self) -> dict[str, Tensor]:
        kinds = {"parameter": self.parameters, "buffer": self.buffers}
        return {f"{kind} {name}": tensor for kind, tensors in kinds.items() for name, tensor in tensors.items()}

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the values back into every model."""
        values = self.parameters | self.buffers
        for k, model in enumerate(self.models):
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                tensor.copy_(values[name][k])
            model.eval()
