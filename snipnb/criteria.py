"""The registry of pruning criteria: name -> salience, label, place in the house colours. A new one is a function and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from snipnb.curvature import printed_second_order, taylor_salience
from snipnb.exact import exact_salience
from snipnb.salience import Salience, magnitude_salience, random_salience, snip


@dataclass(frozen=True)
class Criterion:
    """A way to rank parameters before training.

    Attributes:
        salience: Model, images, labels and a seed -> salience; parameters of smallest magnitude of it go.
        label: For figures and tables.
        uses_images: Whether it depends on images at all.
    """

    salience: Callable[[nn.Module, Tensor, Tensor, int], Salience]
    label: str
    uses_images: bool = True


CRITERIA: dict[str, Criterion] = {
    "exact": Criterion(lambda model, images, labels, seed: exact_salience(model, images, labels), "exact salience"),
    "snip": Criterion(lambda model, images, labels, seed: snip(model, images, labels), "SNIP"),
    "second_order": Criterion(
        lambda model, images, labels, seed: taylor_salience(model, images, labels, order=2), "second order"
    ),
    "third_order": Criterion(
        lambda model, images, labels, seed: taylor_salience(model, images, labels, order=3), "third order"
    ),
    "linear_region": Criterion(
        lambda model, images, labels, seed: taylor_salience(model, images, labels, order="linear-region"),
        "linear region",
    ),
    "printed_second_order": Criterion(
        lambda model, images, labels, seed: printed_second_order(model, images, labels), "second order as printed"
    ),
    "magnitude": Criterion(lambda model, images, labels, seed: magnitude_salience(model), "magnitude", False),
    "random": Criterion(lambda model, images, labels, seed: random_salience(model, seed=seed), "random", False),
}
