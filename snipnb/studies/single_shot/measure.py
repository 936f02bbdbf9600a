"""What notebook 08 compares: how networks train with the masks of many criteria, what the masks keep, and which saliences are loss changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn

from snipnb._progress import track
from snipnb.networks import MODELS
from snipnb.pruning.criteria import WITH_CONTROLS, Start, salience_for
from snipnb.pruning.masks import Mask, num_kept
from snipnb.pruning.paths import on_paths
from snipnb.publish.comparisons import against_snip, interval_of, last_rates, summarise
from snipnb.publish.stats import rank_correlation
from snipnb.studies.shared import flat, grid_of, quiet_mask
from snipnb.training.grid import masks_of
from snipnb.training.runs import RunConfig
from snipnb.training.store import Store

NETWORKS = {"lenet5": "LeNet-5", "lenet_300_100": "LeNet-300-100"}
CRITERIA_COMPARED = (*WITH_CONTROLS, "erdos_renyi_kernel", "random")
UPPER = "iterative_magnitude"
# Saliences that estimate the loss change when a parameter alone is removed.
ESTIMATES = (
    *("snip", "second_order", "third_order", "linear_region"),
    *("optimal_brain_damage", "fisher", "fisher_taylor", "fisher_taylor_as_coded"),
)
JUDGED = 0.95  # the sparsity of kept sets, and of what findings name
CONTROL_ENDINGS = ("_shuffled", "_redrawn")
# Controls that say nothing: NTK-SAP draws the weights anew, so its mask does not depend on the network's own.
WITHOUT_CONTROL = (("ntk_sap", "redrawn"),)
LARGEST = 0.01  # share of parameters whose loss is looked for


# --- runs -------------------------------------------------------------------------------------------------------------


def grids(parameters: Mapping[str, Any]) -> dict[str, list[RunConfig]]:
    """Training runs of the notebook with these parameters: ``single_shot``, all criteria on both networks, dense networks, controls, and the upper reference."""
    sparsities, runs = sorted({*parameters["sparsities"], JUDGED}), []
    for model, number in (("lenet5", parameters["num_runs"]), ("lenet_300_100", parameters["num_other_runs"])):
        of = partial(grid_of, {**parameters, "num_runs": number}, model=model)
        runs += of(["snip"], [0.0]) + of(CRITERIA_COMPARED, sparsities)
        whole = {**parameters, "salience_images": 0}  # its rounds train on all images
        runs += grid_of(whole, [UPPER], sparsities, num_seeds=parameters["num_upper_runs"], model=model)
    controls = [name + ending for name in WITH_CONTROLS for ending in CONTROL_ENDINGS]
    runs += grid_of(parameters, controls, [JUDGED], num_seeds=parameters["num_control_runs"])
    return {"single_shot": runs}


def compare(runs: pd.DataFrame, *, smallest_margin: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """:func:`snipnb.publish.comparisons.against_snip` for each network, without controls and dense networks; with the column ``network`` first."""
    found: list[list[pd.DataFrame]] = [[], []]
    some = runs[(runs["sparsity"] > 0) & ~runs["criterion"].str.endswith(CONTROL_ENDINGS)]
    for model, part in some.groupby("model", sort=False):
        for frames, frame in zip(found, against_snip(part, smallest_margin=smallest_margin), strict=True):
            frame.insert(0, "network", NETWORKS[str(model)])
            frames.append(frame)
    compared, pairs = (pd.concat(frames, ignore_index=True) for frames in found)
    return compared, pairs


def controls(runs: pd.DataFrame) -> pd.DataFrame:
    """What is lost if a criterion's mask is shuffled within layers, or made for other weights: error rate minus that of its own mask, LeNet-5.

    Left out are :data:`WITHOUT_CONTROL`, and criteria whose own mask keeps nothing of some layer in every network: such networks cannot learn with either mask.

    Returns:
        One row per criterion and control: ``criterion``, ``control``, ``n``, ``own_percent`` (error rate), ``mean``, ``low95``, ``high95`` (of the
        difference, in percentage points). Empty if no controls were trained.
    """
    here = runs[(runs["model"] == "lenet5") & (runs["sparsity"] == JUDGED)]
    wide, rows = last_rates(here).pivot(index="seed", columns="criterion", values="error_percent"), []
    dead = here.groupby("criterion")["collapsed"].min() > 0
    for name in [n for n in WITH_CONTROLS if f"{n}_shuffled" in wide and not dead[n]]:
        for control in [end[1:] for end in CONTROL_ENDINGS if (name, end[1:]) not in WITHOUT_CONTROL]:
            both = wide[[f"{name}_{control}", name]].dropna()
            row = {"criterion": name, "control": control, "n": len(both), "own_percent": both[name].mean()}
            rows.append(row | interval_of((both[f"{name}_{control}"] - both[name]).to_numpy()))
    return pd.DataFrame(rows, columns=["criterion", "control", "n", "own_percent", "mean", "low95", "high95"])


def error_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean error rates at the last epoch, in percent: a row per criterion, the best at the highest sparsity first, and a column per network and sparsity.

    The first row has dense networks, the second SNIP. Sparsities are :data:`JUDGED` and the highest.
    """
    some = runs[~runs["criterion"].str.endswith(CONTROL_ENDINGS)]
    highest = some["sparsity"].max()
    shown = some[some["sparsity"].isin([0.0, JUDGED, highest])]
    rates = last_rates(shown).assign(model=shown["model"])
    dense = rates[rates["sparsity"] == 0].assign(criterion="dense")
    rates = pd.concat([rates[rates["sparsity"] > 0], *(dense.assign(sparsity=s) for s in {JUDGED, highest})])
    wide = rates.pivot_table("error_percent", "criterion", ["model", "sparsity"])
    wide = wide.set_axis([f"{NETWORKS[model]}, {sparsity:g}" for model, sparsity in wide], axis=1)
    rest = wide.drop(index=["dense", "snip"]).sort_values(wide.columns[-1])
    return pd.concat([wide.loc[["dense", "snip"]], rest]).rename_axis("criterion").reset_index()


# --- what masks keep --------------------------------------------------------------------------------------------------


def kept_sets(parameters: Mapping[str, Any], images: Tensor, *, store: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Masks that networks are trained with: how much lies on a path, what they have in common with SNIP's and exact masks, and what they keep of each layer.

    Args:
        parameters: Of the notebook, as for :func:`grids`, and ``num_mask_seeds``: the networks of each kind whose masks are looked at.
        images: [n, ...]; only the shape of an image is used.
        store: Folder of the runs; masks that took long are kept there.

    Returns:
        One row per network, criterion, sparsity and seed: ``network``, ``criterion``, ``sparsity``, ``seed``, ``effective_sparsity``, ``cut`` (whether no weight is on a
        path), ``in_common_with_snip``, ``in_common_with_exact`` (shares of the kept parameters); and, at :data:`JUDGED`, one row per network, criterion and weight tensor:
        ``network``, ``criterion``, ``layer``, ``kept_percent`` (mean over seeds).
    """
    sparsities, rows, layers = sorted({*parameters["sparsities"], JUDGED}), [], []
    seeds = range(parameters["first_seed"], parameters["first_seed"] + parameters["num_mask_seeds"])
    for model, seed in track([(model, seed) for model in NETWORKS for seed in seeds], "masks, networks"):
        of_seed = {**parameters, "first_seed": seed}
        configs = grid_of(of_seed, CRITERIA_COMPARED, sparsities, num_seeds=1, model=model)
        found = zip(configs, masks_of(configs, Store(store), "cpu"), strict=True)
        masks, network = {(c.criterion, c.sparsity): mask for c, mask in found}, MODELS[model](seed=seed)
        for (criterion, sparsity), mask in masks.items():
            facts = {"network": NETWORKS[model], "criterion": criterion}
            row = {**facts, "sparsity": sparsity, "seed": seed}
            total = sum(m.numel() for m in mask.values())
            counting = on_paths(network, mask, images)
            row["effective_sparsity"] = 1 - num_kept(counting) / total
            row["cut"] = not any(bool(m.any()) for name, m in counting.items() if name.endswith("weight"))
            for other in ("snip", "exact"):
                row[f"in_common_with_{other}"] = _in_common(mask, masks[other, sparsity])
            rows.append(row)
            if sparsity == JUDGED:
                kept = {n: 100 * float(m.double().mean()) for n, m in mask.items() if n.endswith("weight")}
                layers += [{**facts, "layer": name, "kept_percent": percent} for name, percent in kept.items()]
    by = ["network", "criterion", "layer"]
    return pd.DataFrame(rows), pd.DataFrame(layers).groupby(by, sort=False)["kept_percent"].mean().reset_index()


def _in_common(mask: Mask, other: Mask) -> float:
    """Share of what a mask keeps that another mask of the same size keeps, too."""
    return num_kept({name: m & other[name] for name, m in mask.items()}) / num_kept(mask)


def path_summary(kept: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of :func:`kept_sets`, and of the share of what is kept that lies on a path, ``on_path``; ``cut``: the number of networks without any path."""
    by = ["network", "criterion", "sparsity"]
    share = (1 - kept["effective_sparsity"]) / (1 - kept["sparsity"])
    found = kept.assign(on_path=share.clip(upper=1)).groupby(by, sort=False)
    means = found[["effective_sparsity", "on_path", "in_common_with_snip", "in_common_with_exact"]].mean()
    means.insert(0, "n", found.size())
    means.insert(3, "cut", found["cut"].sum())
    return means.reset_index()


# --- which saliences are loss changes ---------------------------------------------------------------------------------


def estimates(states: Mapping[str, Iterable[nn.Module]], images: Tensor, labels: Tensor) -> pd.DataFrame:
    """Every salience that estimates the loss change of a single removal, against the exact one.

    **Definition.** ``spearman``: rank correlation of the magnitudes. ``in_common``: share of what the exact salience keeps at :data:`JUDGED` that
    the estimate keeps, too. ``missed``: share of the :data:`LARGEST` exact saliences that the estimate would remove at :data:`JUDGED` (false negatives).

    Args:
        states: State -> networks, one per seed.
        images: Images that all saliences are taken over.
        labels: Labels of the images.

    Returns:
        One row per state, estimate and measure: ``state``, ``criterion``, ``measure``, ``n``, ``mean``, ``smallest``, ``largest`` over networks.
    """
    rows = []
    for state, model in track([(state, model) for state, models in states.items() for model in models], "estimates"):
        start = Start(model, images, labels, 0)
        exact = salience_for("exact", start)
        size = flat(exact, exact).abs()
        kept = flat(quiet_mask(exact, JUDGED), exact).bool()
        largest = flat(quiet_mask(exact, 1 - LARGEST), exact).bool()
        for name in ESTIMATES:
            found = salience_for(name, start)
            own = flat(quiet_mask(found, JUDGED), exact).bool()
            values = {
                "spearman": rank_correlation(flat(found, exact).abs().numpy(), size.numpy()),
                "in_common": float(own[kept].double().mean()),
                "missed": float((~own)[largest].double().mean()),
            }
            rows += [{"state": state, "criterion": name, "measure": m, "value": value} for m, value in values.items()]
    return summarise(pd.DataFrame(rows), ["state", "criterion", "measure"], "value")


def estimates_table(found: pd.DataFrame) -> pd.DataFrame:
    """Means of :func:`estimates`: one row per estimate, a column per state and measure."""
    wide = found.pivot(index="criterion", columns=["state", "measure"], values="mean")
    columns = [(s, m) for s in found["state"].unique() for m in ("spearman", "in_common", "missed")]
    wide = wide.loc[list(ESTIMATES), columns]
    return wide.set_axis([f"{m}, {s}" for s, m in wide], axis=1).reset_index()


# --- beside what others have published --------------------------------------------------------------------------------


def beside_published(runs: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Published error rates of LeNet-300-100 at the shares kept that were trained here, with ours by SNIP and by iterative magnitude pruning.

    Args:
        runs: As from :func:`snipnb.run_grid`.
        published: ``method``, ``kept_percent``, ``error_percent``, ``standard_error``, ``source``.

    Returns:
        The rows of ``published``, those with the most kept first: ``kept_percent``, ``method``, ``published``, ``standard_error``, ``source``, ``snip`` and
        ``iterative_magnitude`` (mean error rates at the last epoch; dense networks under ``snip``).
    """
    rates = last_rates(runs[runs["model"] == "lenet_300_100"])
    ours = rates.pivot_table("error_percent", "sparsity", "criterion").reindex(columns=["snip", UPPER])
    theirs = published.sort_values("kept_percent", ascending=False, kind="stable")
    theirs = theirs.rename(columns={"error_percent": "published"})
    sparsities = (1 - theirs["kept_percent"] / 100).round(6)
    both = theirs.assign(sparsity=sparsities).merge(ours.dropna(subset="snip"), on="sparsity")
    return both[["kept_percent", "method", "published", "standard_error", "source", "snip", UPPER]]
