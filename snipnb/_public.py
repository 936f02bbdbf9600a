"""The public names of the package, for its ``__getattr__``."""

from snipnb._checks import Salience
from snipnb.data import DataUnavailableError, Split, data_checksum, load_mnist, load_split
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
from snipnb.saliences.snip import magnitude_salience, random_salience, snip, snip_together
from snipnb.saliences.taylor import diagonal_hessian, taylor_salience
from snipnb.training.grid import run_grid
from snipnb.training.loop import Recipe, train, train_together
from snipnb.training.runs import RunConfig, grid
from snipnb.training.scores import error_rate, error_rates, error_table

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
    "data_checksum",
    "diagonal_hessian",
    "error_rate",
    "error_rates",
    "error_table",
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
