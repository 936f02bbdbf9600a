"""What notebook 09 measures: the tables that six claims are judged by, for another network, and for another network on other images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import pandas as pd

from snipnb.data import load_split
from snipnb.networks import MODELS
from snipnb.pruning.criteria import PERTURBED
from snipnb.publish.sentences import outcome
from snipnb.studies import shared
from snipnb.studies.shared import grid_of
from snipnb.training.recipe import Recipe
from snipnb.training.runs import RunConfig

NETWORKS = {
    "lenet5": "LeNet-5 (MNIST)",
    "lenet_300_100": "LeNet-300-100 (MNIST)",
    "lenet_digits": "small LeNet (digits)",
}
HALF, JUDGED, HIGHEST = 0.5, 0.95, 0.99  # sparsities of the rules
DENSITIES = ["snip_densities", "closed_form"]
FIGURE_1 = [0.75, 0.85, 0.9, 0.93, 0.96]  # sparsities of the rule of C25a
CONTROLS = ["snip_shuffled", "snip_inverted", "uniform", "erdos_renyi_kernel", *PERTURBED]
FIRST_COUNTED = 100  # seeds of kept counts, as the rule of C31 has them


class Shown(NamedTuple):
    """What is shown of the rule of a claim: one of the numbers that it compares.

    Attributes:
        statistic: Name of the number.
        what: What it is, above a panel.
        says: The claim in a few words.
        form: How the number is written.
        setting: The setting of the rule that is the bound, if it is no margin and no number of its outcomes.
    """

    statistic: str
    what: str
    says: str
    form: str = "{:+.2f} points"
    setting: str | None = None


SHOWN = {
    "C2": Shown("pruned_minus_dense", "pruned by half minus dense, points", "pruning by half costs nothing"),
    "C24": Shown(
        "overlap_at_the_worst",
        "overlap of kept sets, smallest of 12",
        "SNIP keeps what the exact salience keeps",
        "overlap {:.2f}",
        "least_overlap",
    ),
    "C25a": Shown("mean_difference", "SNIP minus exact, points", "SNIP trains as well as the exact salience"),
    "C29": Shown("perturbed_costs", "perturbed minus SNIP, points", "SNIP knows what each layer needs"),
    "C31": Shown(
        "largest_typical_change",
        "typical change of a layer's count",
        "layers keep similar numbers from seed to seed",
        "change {:.0%}",
    ),
    "C35": Shown(
        "snip_densities_minus_snip",
        "random places minus SNIP, points",
        "random places with SNIP's layer densities are as good",
    ),
}


def _of(parameters: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Network -> what the grid of its runs takes, for those networks that have runs."""
    numbers = {"lenet5": parameters["num_lenet5_runs"], "lenet_300_100": parameters["num_other_runs"]}
    found = {model: {**parameters, "num_runs": number, "model": model} for model, number in numbers.items()}
    shared_by_all = {name: parameters[name] for name in ("learning_rate", "schedule")}
    recipe = Recipe(parameters["digits_epochs"], 32, **shared_by_all)
    own = {"split_name": "digits", "sample": False, "salience_images": 0, "num_runs": parameters["num_digits_runs"]}
    found["lenet_digits"] = {**parameters, **own, "model": "lenet_digits", "recipe": recipe}
    return {model: of for model, of in found.items() if of["num_runs"]}


def grids(parameters: Mapping[str, Any]) -> dict[str, list[RunConfig]]:
    """Training runs of the notebook, by network."""
    runs = {}
    for model, of in _of(parameters).items():
        grid = partial(grid_of, of, model=model, recipe=of.get("recipe"))
        runs[model] = grid(["snip"], [0.0, HALF, JUDGED, HIGHEST]) + grid(DENSITIES, [JUDGED, HIGHEST])
        runs[model] += grid(CONTROLS, [JUDGED]) + grid(["exact", "snip", "random"], FIGURE_1)
    return runs


def tables(
    parameters: Mapping[str, Any], runs: pd.DataFrame, *, sparsities: Sequence[float]
) -> dict[str, dict[str, list[pd.DataFrame]]]:
    """What the rules of :data:`SHOWN` read, for every network.

    Args:
        parameters: Of the notebook.
        runs: As from :func:`snipnb.run_grid` for :func:`grids`, with ``name``, the network.
        sparsities: Those of Figure 1, at which the rule of C24 compares kept sets.

    Returns:
        Network (as in a figure) -> claim -> its tables, in the order in which the function of the claim takes them.
    """
    found = {}
    for model, of in _of(parameters).items():
        split = load_split(of["split_name"], sample=of["sample"])
        some = slice(0, of["salience_images"] or None)
        images, labels = split.train_images[some], split.train_labels[some]
        seeds = range(of["first_seed"], of["first_seed"] + of["num_seeds"])
        given: dict[str, Any] = {"num_images": len(labels), "sparsities": sparsities, "network": MODELS[model]}
        alike, kept, _ = shared.compare_networks(images, labels, seeds=seeds, inits=["pytorch"], **given)
        counted = range(FIRST_COUNTED, FIRST_COUNTED + of["num_counted"])
        networks = shared.ensemble(images, labels, seeds=counted, network=MODELS[model])
        counts = shared.under_conditions({"SNIP": (networks, "snip"), "random": (networks, "random")}, sparsity=JUDGED)
        trained = runs[runs["name"] == model].drop(columns="name")
        found[NETWORKS[model]] = {
            "C2": [trained],
            "C24": [alike, kept],
            "C25a": [trained[trained["sparsity"] > 0], pd.DataFrame()],
            "C29": [trained],
            "C31": [counts],
            "C35": [trained],
        }
    return found


def error_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """How large the networks are and how well they learn: ``network``, ``parameters``, and mean error rates by SNIP's sparsities (0: dense), in percent."""
    own = runs[runs["criterion"] == "snip"]
    last = own[own["epoch"] == own.groupby("name")["epoch"].transform("max")]
    wide = last.pivot_table("test_error", index="name", columns="sparsity", sort=False)
    wide = 100 * wide[[0.0, HALF, JUDGED, HIGHEST]]
    names = {model: sum(p.numel() for p in MODELS[model]().parameters()) for model in wide.index}
    found = wide.set_axis(["dense", *(f"sparsity {s:g}" for s in wide.columns[1:])], axis=1).reset_index(drop=True)
    found.insert(0, "network", [NETWORKS[model] for model in names])
    found.insert(1, "parameters", list(names.values()))
    return found


def verdicts(said: pd.DataFrame) -> pd.DataFrame:
    """A row per claim, a column per network: the verdicts by the same rules, without their remarks."""
    words = said.assign(word=said["verdict"].str.partition(" (")[0])
    wide = words.pivot(index="claim", columns="network", values="word")
    wide = wide.loc[list(SHOWN), list(dict.fromkeys(said["network"]))].reset_index()
    wide.insert(1, "says", [SHOWN[claim].says for claim in wide["claim"]])
    return wide


def scored(parameters: Mapping[str, Any]) -> str:
    """How many images trained networks are scored on, as a text."""
    splits = {model: load_split(of["split_name"], sample=of["sample"]) for model, of in _of(parameters).items()}
    return ", ".join(f"{len(split.test_labels):,} for {NETWORKS[model]}" for model, split in splits.items())


def numbers(said: pd.DataFrame) -> str:
    """How many trained networks of each kind there are, as a text."""
    trained = said[said["claim"] == "C2"]
    return ", ".join(f"{n} for {network}" for network, n in zip(trained["network"], trained["n"], strict=True))


def key(said: pd.DataFrame) -> str:
    """What the marks of verdicts mean, as a text."""
    found = dict.fromkeys(outcome(verdict) for verdict in said["verdict"])
    return ", ".join(f"{glyph} {name}" for glyph, _, name in found)


def kinds(said: pd.DataFrame) -> dict[str, list[str]]:
    """What came out -> claims: contradicted somewhere, or where they hold (at least in part); with one network, its outcomes."""
    names = said["verdict"].map(lambda verdict: outcome(verdict)[2])
    found: dict[str, list[str]] = {}
    for claim, own in names.groupby(said["claim"], sort=False):
        holds = own.isin([outcome("supported")[2], outcome("partly supported")[2]])
        if said["network"].nunique() == 1:
            kind = own.iloc[0]
        elif (own == outcome("contradicted")[2]).any():
            kind = "contradicted on some"
        elif holds.all():
            kind = "upheld at least in part on all"
        else:
            kind = "upheld on some, open on others" if holds.any() else "open on all"
        found.setdefault(kind, []).append(str(claim))
    return dict(sorted(found.items(), key=lambda item: item[0] != "contradicted on some"))
