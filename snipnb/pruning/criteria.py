"""The registry of pruning criteria: how each chooses what a network keeps. Their looks are in :data:`snipnb.publish.style.LOOKS`.

A criterion ranks parameters (a function from a :class:`Start` to a salience), or says how many of each layer are kept (a function
that makes the mask), or both. A new criterion is such a function and an entry in :data:`CRITERIA`, also from outside the package:

    >>> from snipnb import CRITERIA, Criterion, snip
    >>> def of_one_mini_batch(start):
    ...     return snip(start.model, start.images[:128], start.labels[:128])
    >>> CRITERIA["snip_of_128"] = Criterion(of_one_mini_batch, version=1)
    >>> CRITERIA.pop("snip_of_128").version
    1
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from snipnb._checks import Salience
from snipnb._engine.ensembles import stacked
from snipnb.pruning import closed_form, densities, single_shot
from snipnb.pruning.masks import LayerCollapseWarning, Mask, keep_mask, sizes_and_kept
from snipnb.pruning.single_shot import in_rounds
from snipnb.saliences.brute_force import float32_differences
from snipnb.saliences.exact import exact_salience
from snipnb.saliences.snip import magnitude_salience, random_salience, snip, snip_together
from snipnb.saliences.taylor import printed_second_order, taylor_salience

OTHER_NETWORKS = 5  # networks whose saliences are taken where a rule knows the architecture, not the network
# Draws of perturbed layer densities, each a criterion of its own.
PERTURBED = tuple(f"perturbed_{number}" for number in range(1, 7))
OTHER_SEEDS = 1_000_000  # seeds of other networks begin here, above the network's own


@dataclass(frozen=True)
class Start:
    """A network before training, and everything that a criterion may look at.

    Attributes:
        model: The network; not to be changed.
        images: [n, ...] on the model's device; none of them (n = 0) for criteria that use none.
        labels: [n].
        seed: Seed of the initial weights, and of what the criterion draws.
        init: Initialisation.
        draw: Seed -> the same kind of network, with the weights of this seed.

    Example:
        >>> import snipnb
        >>> images, labels = snipnb.load_mnist("test", sample=True)
        >>> start = snipnb.Start(snipnb.lenet5(seed=2), images[:100], labels[:100], seed=2)
        >>> list(snipnb.CRITERIA["snip"].salience(start))[:2]
        ['conv1.weight', 'conv1.bias']
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    seed: int
    init: str = "pytorch"
    draw: Callable[[int], nn.Module] | None = None

    def others(self, number: int) -> list[nn.Module]:
        """Networks that differ only in their initial weights, in evaluation mode."""
        return self.drawn(range(OTHER_SEEDS + number * self.seed, OTHER_SEEDS + number * (self.seed + 1)))

    def drawn(self, seeds: Iterable[int]) -> list[nn.Module]:
        """Networks with the initial weights of these seeds, in evaluation mode."""
        if self.draw is None:
            raise ValueError("this criterion draws other networks; its Start must have draw, a function of a seed")
        device = next(self.model.parameters()).device
        return [self.draw(seed).to(device).eval() for seed in seeds]


def by_magnitude(start: Start, salience: Salience, sparsity: float) -> Mask:
    """Keep the parameters with the largest salience magnitude; the count is exact."""
    return keep_mask(salience, sparsity, ties="stable")


@dataclass(frozen=True)
class Criterion:
    """A way to choose what is kept before training.

    Attributes:
        salience: Start -> salience; the parameters with its smallest magnitudes are removed. None for rules that need no salience.
        salience_of: The criterion whose salience is taken instead.
        mask: Start, salience (empty if there is none) and sparsity -> mask, with an exact count.
        uses_images: Whether it depends on images at all.
        version: Version of what the criterion computes; part of the identity of runs. Raise it when the numbers change. Runs of
            a criterion without a version are not kept.
    """

    salience: Callable[[Start], Salience] | None = None
    _: dataclasses.KW_ONLY
    salience_of: str | None = None
    mask: Callable[[Start, Salience, float], Mask] = by_magnitude
    uses_images: bool = True
    version: int | None = None


# --- rules that make masks ---------------------------------------------------------------------------------------------


def smallest(start: Start, salience: Salience, sparsity: float) -> Mask:
    """The opposite: as many of every tensor as the salience would keep, but with the smallest magnitudes; ties at random."""
    mask, draw = by_magnitude(start, salience, sparsity), _generator(start)
    for name, own in mask.items():
        order = torch.randperm(own.numel(), generator=draw).to(own.device)
        lowest = order[salience[name].abs().flatten()[order].sort(stable=True).indices[: int(own.sum())]]
        mask[name] = torch.zeros_like(own.flatten()).index_fill_(0, lowest, True).view(own.shape)
    return mask


def controls_of(name: str, own: Criterion) -> dict[str, Criterion]:
    """Two controls of a criterion, with its version.

    Args:
        name: Name of the criterion.
        own: The criterion.

    Returns:
        ``<name>_shuffled``: as many of every tensor as the criterion keeps, drawn at random within the tensor. ``<name>_redrawn``: the mask
        that the criterion makes for other initial weights.
    """

    taken = CRITERIA[own.salience_of].salience if own.salience_of else own.salience

    def shuffled(start: Start, salience: Salience, sparsity: float) -> Mask:
        return _drawn(start, densities.densities_of(own.mask(start, salience, sparsity)), sparsity)

    def salience_of_other(start: Start) -> Salience:
        return taken(_other(start)) if taken else {}

    def redrawn(start: Start, salience: Salience, sparsity: float) -> Mask:
        return own.mask(_other(start), salience, sparsity)

    return {
        f"{name}_shuffled": dataclasses.replace(own, salience_of=own.salience_of or name, mask=shuffled),
        f"{name}_redrawn": dataclasses.replace(own, salience=salience_of_other, salience_of=None, mask=redrawn),
    }


def _other(start: Start) -> Start:
    """The same start with other initial weights."""
    return dataclasses.replace(start, model=start.others(1)[0])


def mean_densities(start: Start, salience: Salience, sparsity: float) -> Mask:
    """Random masks with the mean layer densities of several networks, whose saliences are stacked: name -> [networks, ...]."""
    return _drawn(start, _mean_densities(start, salience, sparsity), sparsity)


def _mean_densities(start: Start, salience: Salience, sparsity: float) -> densities.Densities:
    found = [
        densities.densities_of(by_magnitude(start, {name: s[k] for name, s in salience.items()}, sparsity))
        for k in range(len(next(iter(salience.values()))))
    ]
    return {name: float(np.mean([d[name] for d in found])) for name in found[0]}


def perturbed_densities(number: int) -> Callable[[Start, Salience, float], Mask]:
    """Like :func:`mean_densities`, but every density is multiplied by 2^u with u uniform in [-1, 1].

    Then all densities are multiplied by one factor, so that as many parameters are kept.

    Args:
        number: Number of the draw of u, from 1. Networks of different seeds have different draws.
    """

    def mask(start: Start, salience: Salience, sparsity: float) -> Mask:
        wanted = _mean_densities(start, salience, sparsity)
        sizes, kept = sizes_and_kept(start.model, sparsity)
        powers = np.random.default_rng((start.seed, 2, number)).uniform(-1, 1, len(wanted))
        scaled = {name: density * 2**u for (name, density), u in zip(wanted.items(), powers, strict=True)}
        return _drawn(start, densities.proportional_densities(sizes, scaled, kept), sparsity)

    return mask


def with_densities(rule: densities.Rule) -> Callable[[Start, Salience, float], Mask]:
    """Random masks with the layer densities of a rule (model, sparsity, initialisation -> density of every tensor)."""
    return lambda start, salience, sparsity: _drawn(start, rule(start.model, sparsity, start.init), sparsity)


def predicted(start: Start, salience: Salience, sparsity: float) -> Mask:
    """Random masks with the closed form's layer densities for images of this shape."""
    shape = start.images.shape[1:] or closed_form.IMAGE_SHAPE
    wanted = closed_form.predicted_densities(start.model, sparsity, init=start.init, image_shape=shape)  # type: ignore[arg-type]
    return _drawn(start, wanted, sparsity)


def _drawn(start: Start, wanted: densities.Densities, sparsity: float) -> Mask:
    _, kept = sizes_and_kept(start.model, sparsity)
    seed = _generator(start).initial_seed()
    return densities.mask_of_densities(start.model, wanted, num_kept=kept, seed=seed)


def _generator(start: Start) -> torch.Generator:
    """The same draw for all rules of one seed. It is not the stream that the weights came from."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((start.seed, 1)).generate_state(1)[0]))


# --- what the registry gives -------------------------------------------------------------------------------------------


def ranked_by(name: str) -> str:
    """The criterion whose salience a criterion takes: most take their own."""
    return CRITERIA[name].salience_of or name


def salience_for(name: str, start: Start) -> Salience:
    """The salience that a criterion takes; empty if it needs none."""
    function = CRITERIA[ranked_by(name)].salience
    found = function(start) if function else {}
    if not isinstance(found, Mapping):
        got = type(found).__name__
        raise ValueError(f"criterion {name!r} must return a dictionary, parameter name -> salience; got a {got}")
    return dict(found)


def mask_for(name: str, start: Start, salience: Salience, sparsity: float) -> Mask:
    """The mask of a criterion for a salience from :func:`salience_for`. A mask that cuts the network gives no warning here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LayerCollapseWarning)
        return CRITERIA[name].mask(start, salience, sparsity)


def _taylor(order: int | str) -> Callable[[Start], Salience]:
    return lambda start: taylor_salience(start.model, start.images, start.labels, order=order)


_RULES = densities.rules()
CRITERIA: dict[str, Criterion] = {
    "snip": Criterion(lambda s: snip(s.model, s.images, s.labels), version=1),
    "exact": Criterion(lambda s: exact_salience(s.model, s.images, s.labels), version=1),
    "exact_float32": Criterion(lambda s: float32_differences(s.model, s.images, s.labels), version=1),
    "random": Criterion(lambda s: random_salience(s.model, seed=s.seed), uses_images=False, version=1),
    "magnitude": Criterion(lambda s: magnitude_salience(s.model), uses_images=False, version=1),
    "second_order": Criterion(_taylor(2), version=1),
    "third_order": Criterion(_taylor(3), version=1),
    "linear_region": Criterion(_taylor("linear-region"), version=1),
    "printed_second_order": Criterion(lambda s: printed_second_order(s.model, s.images, s.labels), version=1),
    "snip_train_mode": Criterion(lambda s: snip(s.model, s.images, s.labels, mode="train"), version=1),
    "snip_densities": Criterion(
        lambda s: stacked(snip_together(s.others(OTHER_NETWORKS), s.images, s.labels)), mask=mean_densities, version=1
    ),
    "closed_form": Criterion(mask=predicted, uses_images=False, version=1),
    "erdos_renyi_kernel": Criterion(mask=with_densities(_RULES["erdos_renyi_kernel"]), uses_images=False, version=1),
    "uniform": Criterion(mask=with_densities(_RULES["uniform"]), uses_images=False, version=1),
    "snip_inverted": Criterion(salience_of="snip", mask=smallest, version=1),
    "grasp": Criterion(single_shot.grasp, version=1),
    "prospr": Criterion(single_shot.prospr, version=1),
    "fisher": Criterion(single_shot.fisher, version=1),
    "optimal_brain_damage": Criterion(single_shot.optimal_brain_damage, version=1),
    "fisher_taylor": Criterion(single_shot.fisher_taylor, version=1),
    "fisher_taylor_as_coded": Criterion(lambda s: single_shot.fisher_taylor(s, sign=1), version=1),
    "iterative_snip": Criterion(mask=in_rounds(single_shot.sensitivity_of_pruned, 20), version=1),
    "force": Criterion(mask=in_rounds(single_shot.sensitivity_of_pruned, 20, may_return=True), version=1),
    "iterative_exact": Criterion(mask=in_rounds(single_shot.exact_of_pruned, 5), version=1),
    "synflow": Criterion(mask=in_rounds(single_shot.synaptic_flow, 100), version=1),
    "ntk_sap": Criterion(mask=in_rounds(single_shot.neural_tangent, 20), version=1),
    **{
        name: Criterion(salience_of="snip_densities", mask=perturbed_densities(number), version=1)
        for number, name in enumerate(PERTURBED, 1)
    },
}
# The criteria that notebook 08 compares with their controls.
WITH_CONTROLS = (
    *("snip", "exact", "iterative_snip", "force", "iterative_exact", "grasp", "prospr", "synflow", "ntk_sap"),
    *("fisher", "optimal_brain_damage", "fisher_taylor", "fisher_taylor_as_coded", "magnitude"),
)
for _name in WITH_CONTROLS:
    CRITERIA |= controls_of(_name, CRITERIA[_name])
