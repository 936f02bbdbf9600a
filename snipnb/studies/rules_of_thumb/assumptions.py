"""Tests of what SNIP takes for granted: single changes add up, the greedy set is the best set, trained networks can be read in the same way."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from snipnb._checks import Salience, float_parameters
from snipnb._engine.ensembles import Stack
from snipnb._progress import track
from snipnb.data import Split
from snipnb.pruning.criteria import Start, mask_for, salience_for
from snipnb.pruning.masks import Mask, num_removed
from snipnb.publish.comparisons import summarise
from snipnb.publish.stats import rank_correlation
from snipnb.saliences.brute_force import mean_loss
from snipnb.saliences.exact import exact_salience
from snipnb.saliences.snip import snip
from snipnb.studies.shared import flat, parts_of, quiet_mask
from snipnb.training.scores import error_rate

SETS_AT_ONCE = 64  # sets that fit into a processor's caches


def masked(model: nn.Module, mask: Mask) -> nn.Module:
    """A copy of a model in which the parameters that the mask removes are zero."""
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in pruned.named_parameters():
            p.mul_(mask[name])
    return pruned


# --- do single changes add up? ------------------------------------------------------------------------------------------


def joint_changes(
    states: Mapping[str, Sequence[nn.Module]],
    images: Tensor,
    labels: Tensor,
    *,
    sparsities: Sequence[float],
    criteria: Sequence[str] = ("snip", "random"),
    exact: Mapping[str, Sequence[Salience]] | None = None,
    first_seed: int = 0,
) -> pd.DataFrame:
    """The loss change when a whole set is removed, compared with the sum of the changes when each parameter is removed alone.

    Args:
        states: State -> networks, one per seed.
        images: [n, ...]; losses and saliences are taken over them.
        labels: [n].
        sparsities: Fractions removed.
        criteria: Names in :data:`snipnb.CRITERIA`, which choose the sets.
        exact: State -> exact saliences of its networks over these images, where they are known.
        first_seed: Seed of each state's first network; the other seeds follow.

    Returns:
        One row per state, network, criterion and sparsity: ``state``, ``seed``, ``criterion``, ``sparsity``, ``joint``, ``sum_of_single``, ``ratio``.
    """
    rows = []
    jobs = [(state, k, model) for state, models in states.items() for k, model in enumerate(models)]
    for state, k, model in track(jobs, "joint changes, networks"):
        known, seed = (exact or {}).get(state), first_seed + k
        alone = known[k] if known else exact_salience(model, images, labels)
        before = float(mean_loss(model, images, labels))
        for name in criteria:
            start = Start(model, images, labels, seed)
            salience = salience_for(name, start)
            for sparsity in sparsities:
                mask = mask_for(name, start, salience, sparsity)
                single = sum(float(e[~mask[n]].double().sum()) for n, e in alone.items())
                joint = float(mean_loss(masked(model, mask), images, labels)) - before
                facts = {"joint": joint, "sum_of_single": single, "ratio": joint / single if single else float("nan")}
                rows.append({"state": state, "seed": seed, "criterion": name, "sparsity": sparsity} | facts)
    return pd.DataFrame(rows)


def joint_summary(changes: pd.DataFrame) -> pd.DataFrame:
    """Over networks: ``state``, ``criterion``, ``sparsity``, ``n``, medians of ``joint``, ``sum_of_single`` and ``ratio``, ``smallest``, ``largest`` ratio."""
    groups = changes.groupby(["state", "criterion", "sparsity"], sort=False)
    table = groups[["joint", "sum_of_single", "ratio"]].median()
    ratio = groups["ratio"]
    return table.assign(n=ratio.size(), smallest=ratio.min(), largest=ratio.max()).reset_index()


# --- is the greedy set the best one? ------------------------------------------------------------------------------------


def toy_problem(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The images of two digits, 0 and 1, as means over their four quarters: [n, 4] in float64, labels 0 and 1."""
    chosen = labels < 2
    return nn.functional.avg_pool2d(images[chosen].double(), 14).flatten(1), labels[chosen]


def toy_network(seed: int) -> nn.Sequential:
    """Four inputs, two hidden units, two classes: 16 parameters in float64, PyTorch's initialisation."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)).double()


@torch.no_grad()
def changes_of_all_sets(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss change when each set of parameters is removed, for all 2^m of them.

    Args:
        model: An ``nn.Sequential`` of at most m = 20 parameters.
        images: [n, ...].
        labels: [n].

    Returns:
        Which parameters are removed, bool [2^m, m], and the change [2^m].

    Raises:
        ValueError: If the model has more than 20 parameters, or layers that cannot be stacked.
    """
    parameters = float_parameters(model)
    sizes = [p.numel() for p in parameters.values()]
    count = sum(sizes)
    if count > 20:
        raise ValueError(f"the model must have at most 20 parameters, as all sets of them are tried; got {count}")
    removed = (torch.arange(2**count)[:, None] >> torch.arange(count)) % 2 == 1

    stack = Stack(model)
    inputs = stack.inputs(images)

    def losses_of(kept: Tensor) -> Tensor:
        parts = zip(parameters.items(), kept.split(sizes, 1), strict=True)
        logits = stack.logits(inputs, {name: p * some.view(-1, *p.shape) for (name, p), some in parts}, {})
        return nn.functional.cross_entropy(logits, labels.expand(len(kept), -1), reduction="none").mean(1)

    losses = torch.cat([losses_of(~some) for some in removed.split(SETS_AT_ONCE)])
    return removed, losses - losses[0]


def greedy_against_best(images: Tensor, labels: Tensor, *, seeds: Iterable[int]) -> pd.DataFrame:
    """On toy networks: the parameters of smallest exact salience, and the parameters of smallest SNIP salience, against the best set of their size.

    **Definition.** Of all sets of k parameters, the removal of the best set changes the loss least, in magnitude.

    Returns:
        One row per network, size and ranking: ``seed``, ``size``, ``sets`` (how many of that size), ``ranking``, ``change``, ``best_change`` (magnitudes),
        ``better_sets`` (share of all sets of that size with a smaller change), ``is_best``.
    """
    x, y = toy_problem(images, labels)
    rows = []
    for seed in track(list(seeds), "all sets, toy networks"):
        model = toy_network(seed)
        removed, changes = changes_of_all_sets(model, x, y)
        sizes, magnitudes = removed.sum(1), changes.abs()
        saliences = {"exact": exact_salience(model, x, y), "snip": snip(model, x, y)}
        powers = 2 ** torch.arange(removed.shape[1])
        for size in range(1, removed.shape[1]):
            all_of_size = magnitudes[sizes == size]
            for ranking, salience in saliences.items():
                order = flat(salience, salience).abs().argsort(stable=True)
                own = magnitudes[powers[order[:size]].sum()]
                better = float((all_of_size < own * (1 - 1e-9)).double().mean())
                facts = {"change": float(own), "best_change": float(all_of_size.min()), "better_sets": better}
                row = {"seed": seed, "size": size, "sets": len(all_of_size), "ranking": ranking}
                rows.append(row | facts | {"is_best": better == 0})
    return pd.DataFrame(rows)


def greedy_summary(found: pd.DataFrame) -> pd.DataFrame:
    """By size and ranking: ``n``, ``best_in_percent`` of networks, ``median_better_sets_percent``, ``median_change``, ``median_best_change``."""
    groups = found.groupby(["size", "sets", "ranking"], sort=False)
    table = groups.agg(
        n=("seed", "size"),
        best_in_percent=("is_best", lambda x: 100 * x.mean()),
        median_better_sets_percent=("better_sets", lambda x: 100 * x.median()),
        median_change=("change", "median"),
        median_best_change=("best_change", "median"),
    )
    return table.reset_index()


def number_of_sets(count: int, sparsity: float) -> float:
    """log10 of the number of sets of floor(sparsity * count) parameters out of ``count``."""
    k = num_removed(count, sparsity)
    return (math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)) / math.log(10)


# --- what a trained network says ----------------------------------------------------------------------------------------

RANKINGS = ("snip", "exact", "second_order", "magnitude", "random")


def trained_agreement(saliences: Sequence[Mapping[str, Salience]], *, first_seed: int = 0) -> pd.DataFrame:
    """Rank correlation of every ranking with the exact salience in trained networks, by tensor and for the whole network.

    Args:
        saliences: As from :func:`rankings_of`, one per network.
        first_seed: Seed of the first network; the other seeds follow.

    Returns:
        One row per network, ranking and part: ``seed``, ``ranking``, ``layer``, ``spearman``.
    """
    rows = []
    for seed, found in enumerate(saliences, first_seed):
        exact = found["exact"]
        others = [name for name in found if name != "exact"]
        for name, (layer, names) in itertools.product(others, parts_of(exact, label=str).items()):
            a, b = (flat(s, names).abs().numpy() for s in (found[name], exact))
            rows.append({"seed": seed, "ranking": name, "layer": layer, "spearman": rank_correlation(a, b)})
    return pd.DataFrame(rows)


def rankings_of(
    models: Sequence[nn.Module], images: Tensor, labels: Tensor, *, first_seed: int = 0
) -> list[dict[str, Salience]]:
    """Saliences of networks as they are, for every ranking in :data:`RANKINGS`; the networks' seeds follow ``first_seed``."""
    return [
        {name: salience_for(name, Start(model, images, labels, seed)) for name in RANKINGS}
        for seed, model in enumerate(track(models, "saliences, trained networks"), first_seed)
    ]


def removal_errors(
    models: Sequence[nn.Module],
    saliences: Sequence[Mapping[str, Salience]],
    split: Split,
    *,
    sparsities: Sequence[float],
    first_seed: int = 0,
) -> pd.DataFrame:
    """Test error of trained networks without the parameters that a ranking puts last. Nothing is trained again.

    Returns:
        ``seed``, ``ranking``, ``sparsity``, ``error_percent``, ``increase`` (percentage points).
    """
    rows = []
    jobs = list(enumerate(zip(models, saliences, strict=True), first_seed))
    for seed, (model, found) in track(jobs, "removal, trained networks"):
        before = _error_percent(model, split)
        for ranking, sparsity in itertools.product(found, sparsities):
            error = _error_percent(masked(model, quiet_mask(found[ranking], sparsity)), split)
            facts = {"error_percent": error, "increase": error - before}
            rows.append({"seed": seed, "ranking": ranking, "sparsity": sparsity} | facts)
    return pd.DataFrame(rows)


def _error_percent(model: nn.Module, split: Split) -> float:
    return 100 * error_rate(model, split.test_images, split.test_labels)


def removal_by_layer(
    models: Sequence[nn.Module],
    saliences: Sequence[Mapping[str, Salience]],
    split: Split,
    *,
    sparsity: float,
    first_seed: int = 0,
) -> pd.DataFrame:
    """What SNIP says of each weight tensor of trained networks, and what it costs to remove parameters of that tensor alone.

    **Definition.** ``named_percent``: the share of the tensor that SNIP would remove if it pruned the whole network to this sparsity.
    ``increase``: rise of the test error, in percentage points, when the fraction ``sparsity`` of the tensor is removed, the parameters that
    a ranking puts last. Nothing else is removed, and nothing is trained again.

    Returns:
        ``seed``, ``layer``, ``named_percent``, ``ranking``, ``increase``.
    """
    rows = []
    jobs = list(enumerate(zip(models, saliences, strict=True), first_seed))
    for seed, (model, found) in track(jobs, "removal by layer, trained networks"):
        before = _error_percent(model, split)
        whole = quiet_mask(found["snip"], sparsity)
        for layer in [n for n, p in model.named_parameters() if p.dim() > 1]:
            named = 100 * float((~whole[layer]).double().mean())
            for ranking in ("snip", "exact", "magnitude", "random"):
                everything = {n: torch.ones_like(m) for n, m in whole.items()}
                mask = everything | quiet_mask({layer: found[ranking][layer]}, sparsity)
                facts = {"ranking": ranking, "increase": _error_percent(masked(model, mask), split) - before}
                rows.append({"seed": seed, "layer": layer, "named_percent": named} | facts)
    return pd.DataFrame(rows)


def layer_summary(by_layer: pd.DataFrame) -> pd.DataFrame:
    """Over networks: ``layer``, ``named_percent`` (mean), ``ranking``, ``n``, ``mean``, ``smallest``, ``largest`` of the increase."""
    named = by_layer.groupby("layer")["named_percent"].transform("mean")
    return summarise(by_layer.assign(named_percent=named), ["layer", "named_percent", "ranking"])
