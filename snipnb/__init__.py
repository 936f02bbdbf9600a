"""SNIP network pruning, reproduced: saliences, masks and the training of masked networks.

The public names are the ones listed in ``__all__``; nothing is computed, loaded or seeded at import.
"""

from snipnb.data import DataUnavailableError, Split, load_mnist, load_split
from snipnb.networks import INITIALISATIONS, lenet5, lenet_300_100, published_label, set_running_statistics, vgg16_mnist
from snipnb.pruning.criteria import CRITERIA, Criterion, Start
from snipnb.pruning.masks import (
    LayerCollapseWarning,
    Mask,
    apply_mask,
    collapsed_layers,
    keep_mask,
    layer_table,
    num_kept,
    num_removed,
    standardise,
)
from snipnb.saliences.exact import exact_salience
from snipnb.saliences.snip import Salience, magnitude_salience, random_salience, snip
from snipnb.saliences.taylor import diagonal_hessian, taylor_salience
from snipnb.saliences.together import snip_together
from snipnb.training.grid import RunConfig, grid, run_grid
from snipnb.training.loop import Recipe, error_rate, error_rates, train, train_together

__version__ = "0.1.0"

__all__ = [
    "CRITERIA",
    "INITIALISATIONS",
    "Criterion",
    "DataUnavailableError",
    "LayerCollapseWarning",
    "Mask",
    "Recipe",
    "RunConfig",
    "Salience",
    "Split",
    "Start",
    "apply_mask",
    "collapsed_layers",
    "diagonal_hessian",
    "error_rate",
    "error_rates",
    "exact_salience",
    "grid",
    "keep_mask",
    "layer_table",
    "lenet5",
    "lenet_300_100",
    "load_mnist",
    "load_split",
    "magnitude_salience",
    "num_kept",
    "num_removed",
    "published_label",
    "random_salience",
    "run_grid",
    "set_running_statistics",
    "snip",
    "snip_together",
    "standardise",
    "taylor_salience",
    "train",
    "train_together",
    "vgg16_mnist",
]
