"""What a criterion keeps, layer by layer, over many initialisations, and where published counts fall among them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from snipnb._engine.ensembles import stacked
from snipnb._progress import track
from snipnb.data import Split
from snipnb.networks import lenet5
from snipnb.pruning.masks import num_removed
from snipnb.publish.comparisons import BEST, LAST, spread_of
from snipnb.publish.comparisons import place_errors as place_errors  # notebooks take it from here
from snipnb.publish.published import reported
from snipnb.publish.stats import LEVEL, table_fit
from snipnb.saliences.snip import snip, snip_together
from snipnb.studies.shared import Ensemble, grid_of, kept_counts, of_snip, place_reported
from snipnb.training.recipe import Recipe
from snipnb.training.scores import error_table

# Recipes that the published training may have used, apart from the recipe that is followed. The longer report says Adam at 0.0012, but not how the rate falls.
# The first recipe lets it fall as the published code does by default. The last recipe is the training of that code's sample notebook.
RECIPES: dict[str, dict[str, Any]] = {
    "Adam, times 0.99 every epoch": {"learning_rate": 0.0012, "schedule": "exponential", "decay": 0.99},
    "Adam, times 0.95 every epoch": {"learning_rate": 0.0012, "schedule": "exponential", "decay": 0.95},
    "Adam, cosine": {"learning_rate": 0.0012, "schedule": "cosine"},
    "momentum, weight decay, times 0.1 every 40 epochs": {
        "optimiser": "sgd",
        "learning_rate": 0.1,
        "weight_decay": 0.0005,
        "schedule": "step",
        "decay": 0.1,
        "decay_every": 40,
    },
}

# As the published code did until June 2019: scored networks carry one step of pruned parameters. At Figure 2's sparsities.
AT_START = "as above, masks at the start of a step"

# A test of the published error rates ought to tell networks of this recipe from networks of 80 epochs.
ASSAY = Recipe(epochs=3, learning_rate=0.01, schedule="one_cycle")


def rejected_controls(counts: pd.DataFrame) -> pd.DataFrame:
    """Does the test of a whole table notice another procedure? Each seed's table by another ranking, against SNIP's tables.

    Args:
        counts: As from :func:`snipnb.studies.shared.kept_counts`, with the ranking ``snip`` and others.

    Returns:
        One row per ranking: ``ranking``, ``n``, ``rejected`` (tables with p-value at most 5 %), ``median_p``,
        ``smallest_possible_p``. For ``snip`` itself, each seed's table is scored against the tables of the other seeds.
    """
    tables = counts.pivot(index="seed", columns=["ranking", "sparsity", "label"], values="kept")
    own = tables["snip"].to_numpy()
    rows = []
    for name in sorted(counts["ranking"].unique()):
        others = tables[name][tables["snip"].columns].to_numpy()
        references = [np.delete(own, i, axis=0) if name == "snip" else own for i in range(len(others))]
        p = np.array([table_fit(row, reference).p_value for row, reference in zip(others, references, strict=True)])
        row = {"ranking": name, "n": len(p), "rejected": int((p <= 1 - LEVEL).sum()), "median_p": float(np.median(p))}
        rows.append(row | {"smallest_possible_p": 1 / (1 + len(references[0]))})
    return pd.DataFrame(rows)


def beside_reported(counts: pd.DataFrame, reported: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """The write-up's table and the table of one seed side by side, with one row per layer and a total.

    Returns:
        ``layer``, ``params``, and for each sparsity ``reported, <s>`` and ``seed <n>, <s>`` as "kept (removed %)".
    """
    measured = of_snip(counts[counts["seed"] == seed])
    sizes = reported.drop_duplicates("layer").set_index("layer")["params"]
    table = pd.DataFrame({"layer": [*sizes.index, "total"], "params": [*sizes, sizes.sum()]})
    for sparsity in sorted(reported["sparsity"].unique()):
        own = measured[measured["sparsity"] == sparsity].set_index("label")["kept"]
        published = reported[reported["sparsity"] == sparsity].set_index("layer")["kept"]
        for column, kept in ((f"reported, {sparsity:g}", published), (f"seed {seed}, {sparsity:g}", own)):
            numbers = [*kept[sizes.index], kept[sizes.index].sum()]
            table[column] = [_cell(int(n), int(size)) for n, size in zip(numbers, table["params"], strict=True)]
    return table


def _cell(kept: int, size: int) -> str:
    thousandths = (2000 * (size - kept) + size) // (2 * size)  # the write-up rounds halves up
    return f"{kept} ({thousandths / 10} %)"


def kept_percent(counts: pd.DataFrame, placement: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Counts as shares of each layer, for plotting: counts of the seeds, and published counts with their intervals.

    Args:
        counts: As from :func:`snipnb.studies.shared.kept_counts`.
        placement: As from :func:`snipnb.studies.shared.place_reported`.

    Returns:
        ``seed``, ``sparsity``, ``label``, ``kept_percent``; and ``sparsity``, ``label``, ``kept_percent``,
        ``low_percent``, ``high_percent``, ``inside``.
    """
    counts = of_snip(counts)
    points = counts[["seed", "sparsity", "label"]].assign(kept_percent=100 * counts["kept"] / counts["parameters"])
    cells = placement[["sparsity", "label", "inside"]].copy()
    for column, source in (("kept_percent", "reported"), ("low_percent", "low"), ("high_percent", "high")):
        cells[column] = 100 * placement[source] / placement["parameters"]
    return points, cells


def totals(counts: pd.DataFrame, reported: pd.DataFrame) -> pd.DataFrame:
    """Parameters kept in the whole network, over seeds, compared with the sum of the published counts.

    Returns:
        One row per sparsity: ``sparsity``, ``m`` (parameters), ``rank`` (floor(sparsity m)), ``kept_if_rounded`` (kept if
        the rank were the nearest integer), ``published``, ``smallest`` and ``largest`` total over seeds,
        ``seeds_with_another_total`` (seeds whose total differs from the published total).
    """
    own = of_snip(counts).groupby(["sparsity", "seed"])["kept"].sum()
    rows = []
    for sparsity, cells in reported.groupby("sparsity"):
        count, published = int(cells["params"].sum()), int(cells["kept"].sum())
        row = {"sparsity": sparsity, "m": count, "rank": num_removed(count, sparsity)}
        row |= {"kept_if_rounded": count - round(sparsity * count), "published": published}
        row |= {"smallest": int(own[sparsity].min()), "largest": int(own[sparsity].max())}
        rows.append(row | {"seeds_with_another_total": int((own[sparsity] != published).sum())})
    return pd.DataFrame(rows)


def counts_by_images(
    networks: Ensemble, images: Tensor, labels: Tensor, *, sparsities: Sequence[float], num_seeds: int, batch: int = 128
) -> pd.DataFrame:
    """What SNIP keeps when saliences come from all images, from one mini-batch, or from magnitudes averaged over mini-batches.

    **Definition.** ``one_batch``: the k-th network takes the k-th mini-batch in order. ``batch_magnitudes``: as
    ``snip(aggregate="batch_magnitude")``, the mean over all whole mini-batches of the salience's magnitude.

    Args:
        networks: Ensemble with saliences over all images.
        images: [n, 1, 28, 28].
        labels: [n].
        sparsities: Fractions removed.
        num_seeds: How many of the networks are taken; 0 gives no rows.
        batch: Images in a mini-batch.

    Returns:
        As from :func:`snipnb.studies.shared.kept_counts`, with a column ``way``: ``all_images``, ``one_batch`` or ``batch_magnitudes``.
    """
    if num_seeds == 0:
        return pd.DataFrame(columns=["seed", "sparsity", "label", "kept", "way"])
    models = [lenet5(seed=seed) for seed in networks.seeds[:num_seeds]]
    parts = list(zip(images.split(batch), labels.split(batch), strict=True))[: len(labels) // batch]
    one = [snip(model, *part) for model, part in zip(models, itertools.cycle(parts), strict=False)]
    total: dict[str, Tensor] = {}
    for some, classes in track(parts, "mini-batches"):
        found = stacked(snip_together(models, some, classes))
        total = {name: s.abs().double() + total.get(name, 0) for name, s in found.items()}
    saliences = {
        "all_images": {name: s[:num_seeds] for name, s in networks.saliences.items()},
        "one_batch": stacked(one),
        "batch_magnitudes": {name: s / len(parts) for name, s in total.items()},
    }
    weights = {name: w[:num_seeds] for name, w in networks.weights.items()}
    frames = [
        kept_counts(Ensemble(networks.seeds[:num_seeds], weights, found), sparsities=sparsities).assign(way=way)
        for way, found in saliences.items()
    ]
    return pd.concat(frames, ignore_index=True)


def fits_by_images(counts: pd.DataFrame, reported: pd.DataFrame) -> pd.DataFrame:
    """How well a published table fits each way of :func:`counts_by_images`: ``way``, ``n``, ``p_value``, ``counts_outside``."""
    rows = []
    for way, part in counts.groupby("way", sort=False):
        _, fit = place_reported(part, reported)
        facts = {"p_value": fit.p_value, "counts_outside": fit.outside}
        rows.append({"way": way, "n": part["seed"].nunique()} | facts)
    return pd.DataFrame(rows, columns=["way", "n", "p_value", "counts_outside"])


def error_summary(errors: pd.DataFrame, reported: pd.DataFrame) -> pd.DataFrame:
    """Error rates over runs, with 95 % t intervals of the mean over seeds, and the published error rates.

    Args:
        errors: As from :func:`snipnb.error_table`.
        reported: ``sparsity``, ``error_percent``.

    Returns:
        One row per sparsity and way: ``sparsity``, ``way``, ``n``, ``mean``, ``mean_low95``, ``mean_high95`` (seeds only, same
        images; empty for fewer than 3 runs), ``smallest``, ``largest``, ``reported``; errors in percent.
    """
    published = reported.set_index("sparsity")["error_percent"]
    rows = []
    for (sparsity, way), values in errors.groupby(["sparsity", "way"], sort=False)["error_percent"]:
        row = {"sparsity": sparsity, "way": way} | spread_of(values.to_numpy())
        rows.append(row | {"reported": published[sparsity]})
    return pd.DataFrame(rows).rename(columns={"low95": "mean_low95", "high95": "mean_high95"})


def recipe_levels(runs: pd.DataFrame, reported: pd.DataFrame, *, num_scored: int) -> pd.DataFrame:
    """Published error rates compared with the error rates of networks trained by several recipes.

    Args:
        runs: As from :func:`snipnb.run_grid`, with the recipe's name in a column ``name``; at least two runs per name and sparsity.
        reported: ``sparsity``, ``error_percent``; sparsities without runs are left out.
        num_scored: Images that our runs were scored on.

    Returns:
        One row per recipe and sparsity: ``recipe``, ``sparsity``, ``n``, ``untrained`` (networks that are wrong on more than half of the images at
        their best epoch), ``last_epoch`` (mean), and of the best epoch ``best_epoch`` (mean), ``smallest``, ``largest``, and from
        :func:`place_errors` ``low``, ``high``, ``reported``, ``inside``; in percent. Where a network did not train, there is no interval and nothing
        is inside.
    """
    tables = []
    for name, own in runs.groupby("name", sort=False):
        rates = error_table(own)
        by_way = rates.groupby(["way", "sparsity"])["error_percent"]
        found = {"last_epoch": by_way.mean()[LAST], "smallest": by_way.min()[BEST], "largest": by_way.max()[BEST]}
        found["untrained"] = by_way.agg(lambda rate: int((rate > 50).sum()))[BEST]
        placed = place_errors(rates, reported[reported["sparsity"].isin(own["sparsity"])], num_scored=num_scored)
        placed = placed.rename(columns={"mean": "best_epoch"}).assign(recipe=name)
        tables.append(placed.merge(pd.DataFrame(found), on="sparsity"))
    table = pd.concat(tables, ignore_index=True)
    table.loc[table["untrained"] > 0, ["low", "high"]] = np.nan
    table.loc[table["untrained"] > 0, "inside"] = False
    before = ["recipe", "sparsity", "n", "untrained", "last_epoch", "best_epoch", "smallest", "largest"]
    return table[[*before, "low", "high", "reported", "inside"]]


def protocol(split: Split, recipe: Recipe) -> pd.DataFrame:
    """How the published networks were trained and scored, according to their code, and how ours are.

    Returns:
        ``what``, ``published``, ``here``, ``same``. Any learning rate that falls counts as the same, because it is not known how the published rate fell.
    """
    falls = recipe.schedule in ("step", "exponential", "cosine")
    rows = {
        "images trained on": (59_500, len(split.train_labels)),
        "images scored": (10_500, len(split.test_labels)),
        "epochs": (80, recipe.epochs),
        "batch": (128, recipe.batch_size),
        "optimiser": ("adam", recipe.optimiser),
        "learning rate": (0.0012, recipe.learning_rate),
        "weight decay": (0.0, recipe.weight_decay),
        "learning rate falls": ("yes", "yes" if falls else "no"),
    }
    facts = [{"what": what, "published": a, "here": b, "same": a == b} for what, (a, b) in rows.items()]
    return pd.DataFrame(facts)


def same_in_every_way(errors: pd.DataFrame) -> int:
    """Number of runs in which all ways of stating the error rate give the same value."""
    return int((errors.groupby(["criterion", "seed", "sparsity"])["error_percent"].nunique() == 1).sum())


def grids(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Training runs of the notebook with these parameters. Saliences are taken over all images to train on.

    Returns:
        ``figure2``: SNIP at sparsity 0 and at the sparsities of Figure 2. ``assay``: the same, trained by :data:`ASSAY`. ``recipes``: for
        each name in :data:`RECIPES`, runs at sparsity 0 and at the largest sparsity, and :data:`AT_START`, if recipes are compared at all.
    """
    sparsities, num_seeds = sorted(reported("figure2")["sparsity"].unique()), parameters["num_recipe_runs"]
    of = partial(grid_of, parameters, ["snip"])
    others = {name: Recipe(epochs=parameters["epochs"], **options) for name, options in RECIPES.items()}
    recipes = {name: of([0.0, sparsities[-1]], num_seeds=num_seeds, recipe=recipe) for name, recipe in others.items()}
    pruned = of(sparsities, num_seeds=num_seeds)
    recipes[AT_START] = [replace(c, recipe=replace(c.recipe, masks_at="start")) for c in pruned]
    whole = [0.0, *sparsities]
    return {"figure2": of(whole), "assay": of(whole, recipe=ASSAY), "recipes": recipes}
