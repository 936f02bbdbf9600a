"""SNIP against its controls, against rules for layer densities, and under several optimisers: tables of paired differences."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
from torch import Tensor

from snipnb.networks import lenet5
from snipnb.pruning.criteria import PERTURBED, Start, mask_for, salience_for
from snipnb.pruning.masks import layer_table
from snipnb.publish.comparisons import against_snip as against_snip  # notebooks take both from here
from snipnb.publish.comparisons import recipe_ratios as recipe_ratios
from snipnb.studies.shared import grid_of
from snipnb.training.grid import run_grid
from snipnb.training.recipe import Recipe
from snipnb.training.runs import RunConfig

RULES_OF_THUMB = ("snip", "snip_densities", "closed_form")  # with all seeds; the controls may have fewer
CONTROLS = ("snip_shuffled", "snip_redrawn", "erdos_renyi_kernel", "uniform", "magnitude", "snip_inverted")
# Optimisers and schedules that are tried: name -> recipe without epochs, and the learning rates to choose from.
OPTIMISERS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "Adam, one-cycle": ({"optimiser": "adam", "schedule": "one_cycle"}, (0.003, 0.01, 0.03)),
    "Adam, constant": ({"optimiser": "adam", "schedule": "constant"}, (0.0005, 0.0012, 0.003)),
    "momentum, one-cycle": ({"optimiser": "sgd", "schedule": "one_cycle"}, (0.03, 0.1, 0.3)),
    "momentum, constant": ({"optimiser": "sgd", "schedule": "constant"}, (0.003, 0.01, 0.03)),
    "SGD, one-cycle": ({"optimiser": "sgd", "schedule": "one_cycle", "momentum": 0.0}, (0.1, 0.3, 1.0)),
    "SGD, constant": ({"optimiser": "sgd", "schedule": "constant", "momentum": 0.0}, (0.03, 0.1, 0.3)),
}
TRIED = [(name, rate) for name, (_, rates) in OPTIMISERS.items() for rate in rates]
TUNING_SEED = 1000  # its networks are in no comparison
STATES = {"dense": 0.0, "pruned": 0.95}  # networks that learning rates are chosen for: name -> sparsity

JUDGED = 0.95  # the sparsity that rules are about
HALF = 0.5  # the sparsity at which pruned networks are compared with dense networks
# The question behind each control, in the order in which the notebook answers.
QUESTIONS = {
    "snip_shuffled": "Does it matter which parameters of a layer are kept?",
    "snip_redrawn": "Does a mask belong to the weights it was made for?",
    "snip_densities": "Are the layer densities of other networks enough?",
    "closed_form": "Can densities be computed from shapes and initialisation, with four constants fitted once?",
    "perturbed": "Do the densities have to be just these?",
    "erdos_renyi_kernel": "Does a rule that knows no images at all, only fan-in and fan-out, do?",
    "uniform": "Does it matter how many each layer keeps?",
    "magnitude": "Are the largest initial weights worth keeping?",
    "snip_inverted": "Does the salience say anything within a layer?",
}


def kept_by_layer(images: Tensor, labels: Tensor, *, criteria: Sequence[str], sparsity: float) -> pd.DataFrame:
    """What every criterion keeps of each parameter tensor of one LeNet-5, in percent: one row per tensor, a column per criterion."""
    start = Start(lenet5(seed=0), images, labels, 0, draw=lambda other: lenet5(seed=other))
    table = pd.DataFrame()
    for name in criteria:
        layers = layer_table(mask_for(name, start, salience_for(name, start), sparsity))
        table["layer"] = layers["layer"]
        table[name] = 100 * layers["kept"] / layers["parameters"]
    return table


def advice(compared: pd.DataFrame) -> pd.DataFrame:
    """What follows from :func:`against_snip`: one row per question, a column per sparsity with outcome and interval."""
    said = compared.assign(said=compared.apply(_said, axis=1))
    said = said.pivot(index="criterion", columns="sparsity", values="said").reindex(list(QUESTIONS)).fillna("not tried")
    said = said.rename(columns="at {:g}".format)
    return pd.DataFrame({"question": QUESTIONS.values(), "tried": list(QUESTIONS)}).join(said, on="tried")


def _said(row: pd.Series) -> str:
    cut = f"; {row['collapsed']} of {row['n']} networks cut through" if row["collapsed"] else ""
    if row["n"] < 2:
        return f"{row['mean']:+.2f} points, one network"
    return f"{row['outcome']}: {row['mean']:+.2f} points [{row['low95']:.2f}, {row['high95']:.2f}]{cut}"


# --- optimisers and schedules -------------------------------------------------------------------------------------------


def choose_rates(parameters: Mapping[str, Any], *, store: str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """Validation error under every optimiser and learning rate, of a dense network and of a network pruned by SNIP, and the best rate for each.

    Args:
        parameters: Of the notebook.
        store: See :func:`snipnb.run_grid`.

    Returns:
        One row per optimiser and rate: ``name``, ``rate``, ``percent_dense``, ``percent_pruned`` (validation error, last epoch), ``best_dense``,
        ``best_pruned`` (smallest error, and among equal errors the smallest rate). Empty if no optimisers are compared.

    Raises:
        ValueError: If the split has no validation images.
    """
    columns = ["name", "rate", *(f"{what}_{state}" for what in ("percent", "best") for state in STATES)]
    if not parameters["num_optimiser_runs"]:
        return pd.DataFrame(columns=columns)
    runs = run_grid(tuning(parameters), store=store)
    last = runs[runs["epoch"] == parameters["optimiser_epochs"]]
    if last["validation_error"].isna().any():
        raise ValueError(f"learning rates are chosen on validation images; split {parameters['split_name']!r} has none")
    table = pd.DataFrame(TRIED, columns=columns[:2])
    for state, sparsity in STATES.items():
        errors = 100 * last[last["sparsity"] == sparsity].set_index("name")["validation_error"]
        table[f"percent_{state}"] = [errors[_tried(*pair)] for pair in TRIED]
        best = table.sort_values([f"percent_{state}", "rate"]).groupby("name").head(1).index
        table[f"best_{state}"] = table.index.isin(best)
    return table[columns]


def _tried(name: str, rate: float) -> str:
    return f"{name}|{rate}"


def grids(parameters: Mapping[str, Any]) -> dict[str, list[RunConfig]]:
    """Training runs of the notebook with these parameters: ``rules_of_thumb``, with SNIP at 0.5, dense networks, rules for layer densities, and controls."""
    sparsities = sorted({*parameters["sparsities"], JUDGED})
    runs = grid_of(parameters, ["snip"], [0.0, HALF]) + grid_of(parameters, RULES_OF_THUMB, sparsities)
    few = parameters["num_control_runs"]
    return {"rules_of_thumb": runs + grid_of(parameters, CONTROLS + PERTURBED, sparsities, num_seeds=few)}


def tuning(parameters: Mapping[str, Any]) -> dict[str, list[RunConfig]]:
    """Networks of a separate seed, dense and pruned. Learning rates of each optimiser are chosen by their validation error."""
    alone = {**parameters, "first_seed": TUNING_SEED}
    grid = partial(grid_of, alone, ["snip"], list(STATES.values()), num_seeds=1)
    return {_tried(*pair): grid(recipe=_recipe(parameters, *pair)) for pair in TRIED}


def optimisers(
    parameters: Mapping[str, Any], tried: pd.DataFrame, *, sparsities: Sequence[float]
) -> dict[str, list[RunConfig]]:
    """Runs of SNIP at these sparsities, by optimiser and by what its rate was chosen for: ``"<name>|dense"``, with dense networks too, and ``"<name>|pruned"``.

    Args:
        parameters: Of the notebook.
        tried: From :func:`choose_rates`.
        sparsities: Fractions removed.
    """
    found = {}
    for state in STATES:
        for name, rate in tried[tried[f"best_{state}"].astype(bool)][["name", "rate"]].itertuples(index=False):
            taken = [0.0, *sparsities] if state == "dense" else sparsities
            recipe, number = _recipe(parameters, name, float(rate)), parameters["num_optimiser_runs"]
            found[f"{name}|{state}"] = grid_of(parameters, ["snip"], taken, num_seeds=number, recipe=recipe)
    return found


def _recipe(parameters: Mapping[str, Any], name: str, rate: float) -> Recipe:
    return Recipe(epochs=parameters["optimiser_epochs"], learning_rate=rate, **OPTIMISERS[name][0])
