"""What published rows say about a claim: one function a claim, from tables as they stand in ``figures/`` to the numbers its rule compares.

Notebooks and ``make verify`` call the same functions on the same files, so a verdict follows from committed rows alone. Tables come as
``pandas.read_csv`` gives them, in the order in which the notebook hands them to ``report.claim``; settings of a rule as keyword
arguments. Nothing here knows a network, and nothing imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from snipnb.publish import comparisons
from snipnb.publish.comparisons import LAST
from snipnb.publish.stats import mean_interval, non_inferiority_test, power_of, table_fit

ONE_SIDED = 0.90  # level of intervals whose ends are one-sided tests at 5 %
WHOLE = "whole network"
START = "at initialisation"


@dataclass(frozen=True)
class Finding:
    """What rows say about a claim.

    Attributes:
        statistics: Name -> value; those that a rule compares have to be among them.
        intervals: Name of a statistic -> (low, high), where it has one. A rule may name them ``<name>_low`` and ``<name>_high``.
        n: Seeds, runs or rounds behind the numbers; None where there is nothing to count.
        scope: What the numbers are about, such as ``"sparsity 0.95, 3 epochs"``.
        not_run: Why no rule can be applied to these rows; empty if one can.
        not_fresh: Why a rule that asks for seeds which nobody had looked at cannot be applied; empty if it can. The rule as registered can.
    """

    statistics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    n: int | None = None
    scope: str = ""
    not_run: str = ""
    not_fresh: str = ""


def function_of(claim_id: str) -> Callable[..., Finding]:
    """The function of a claim; ValueError if there is none."""
    found = globals().get(claim_id.lower())
    if found is None:
        raise ValueError(f"snipnb/publish/evidence.py has no function {claim_id.lower()}; add the one of {claim_id}")
    return found


def read_rows(path: Path) -> pd.DataFrame:
    """A published table; only an empty cell is a missing value, and of texts an empty text."""
    frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    return frame.fillna({name: "" for name in frame if not pd.api.types.is_numeric_dtype(frame[name])})


# --- derivation (notebook 01) -----------------------------------------------------------------------------------------


def c6(step_errors: pd.DataFrame, rankings: pd.DataFrame, *, step: float, sparsity: float) -> Finding:
    errors = step_errors.loc[step_errors["step"] == step, "error"]
    found = {"additive_overlap": _at(rankings, "overlap", ranking="gradient")}
    found |= {"median_step_error": errors.median(), "largest_step_error": errors.max()}
    return Finding(found, scope=f"LeNet-5, sparsity {sparsity:g}, {len(errors)} parameters sampled")


c7 = c6


def c8(indicators: pd.DataFrame, rankings: pd.DataFrame, *, sparsity: float) -> Finding:
    overlap = _at(rankings, "overlap", ranking="signed salience")
    found = {"relative_difference": indicators["relative_difference"].max(), "signed_overlap": overlap}
    return Finding(found, scope=f"LeNet-5, sparsity {sparsity:g}, all parameters")


def c10(percent_masks: pd.DataFrame) -> Finding:
    found = {"masks_changed": percent_masks["mask_changed"].sum()}
    found["distance_of_sum_from_100"] = (percent_masks["sum_percent"] - 100).abs().max()
    return Finding(found, scope=f"LeNet-5, {len(percent_masks)} sparsities")


def c14(at_one: pd.DataFrame) -> Finding:
    value = at_one.set_index("what")["value"]
    found = {"share_of_saliences_at_one": value["share of saliences equal to 1"]}
    return Finding(found | {"loss_difference_at_one": abs(value["loss change, indicators at 1"])}, scope="LeNet-5")


def c15(symbolic: pd.DataFrame, indicators: pd.DataFrame) -> Finding:
    found = {"symbolic_differences": _differing(symbolic)}
    return Finding(found | {"relative_difference": indicators["relative_difference"].max()}, scope="symbols; LeNet-5")


def c16(operations: pd.DataFrame, indicators: pd.DataFrame) -> Finding:
    found = {"operations_over_one_gradient": operations["over_one_gradient"].iloc[-1]}
    return Finding(found | {"relative_difference": indicators["relative_difference"].max()}, scope="LeNet-5")


def c17(symbolic: pd.DataFrame, remainder_orders: pd.DataFrame) -> Finding:
    orders = remainder_orders["order"].dropna()
    found = {"symbolic_differences": _differing(symbolic), "median_remainder_order": orders.median()}
    return Finding(found, scope=f"symbols; LeNet-5, {len(orders)} of {len(remainder_orders)} sampled parameters")


def c23(linearity: pd.DataFrame) -> Finding:
    linear = linearity[linearity["case"] == linearity["case"].iloc[0]]
    return Finding({"largest_error": linear["error"].max()}, scope=f"{len(linear)} parameters of a linear network")


# --- SNIP and the exact salience (notebook 02) ------------------------------------------------------------------------


def c1(brute_force: pd.DataFrame) -> Finding:
    total = brute_force.iloc[-1]
    found = {name: float(total[name]) for name in ("largest_error", "spearman")}
    return Finding(found, n=int(total["parameters"]), scope="parameters of LeNet-5")


def c5(exact: pd.DataFrame) -> Finding:
    found = {"cost_in_forward_passes_over_m": exact["engine_in_passes_over_parameters"].iloc[0]}
    return Finding(found, scope=_over(exact, "this package's engine"))


def c9(snip: pd.DataFrame) -> Finding:
    row = snip.set_index("way").loc["SNIP of every parameter"]
    interval = {"cost_in_gradients": (row["low95"], row["high95"])}
    scope = _over(snip, "this package")
    return Finding({"cost_in_gradients": row["in_gradients"]}, interval, n=int(row["rounds"]), scope=scope)


def c24(agreement: pd.DataFrame, overlaps: pd.DataFrame, *, init: str, least_overlap: float) -> Finding:
    rho = agreement[(agreement["init"] == init) & (agreement["layer"] == WHOLE)]
    kept = overlaps[(overlaps["init"] == init) & (overlaps["layer"] == WHOLE)]
    found = {"smallest_spearman": rho["spearman"].min(), "smallest_overlap": kept["overlap"].min()}
    means = {s: mean_interval(own["overlap"].to_numpy(), level=ONE_SIDED) for s, own in kept.groupby("sparsity")}
    spearman, low, high = mean_interval(rho["spearman"].to_numpy(), level=ONE_SIDED)
    worst = min(means, key=lambda s: means[s])
    found |= {"spearman": spearman, "overlap_at_the_worst": means[worst][0], "worst_sparsity": worst}
    found["sparsities_inside"] = sum(low >= least_overlap for _, low, _ in means.values())
    found["sparsities_outside"] = sum(high <= least_overlap for _, _, high in means.values())
    intervals = {"spearman": (low, high), "overlap_at_the_worst": means[worst][1:]}
    return Finding(found, intervals, rho["seed"].nunique(), f"LeNet-5 at its start, {len(means)} sparsities")


def c36(exact: pd.DataFrame, snip: pd.DataFrame) -> Finding:
    seconds, row = _at(snip, "seconds", way="SNIP of every parameter"), exact.iloc[0]
    passes = {end: row["parameters"] * row[end] / seconds for end in ("pass_seconds", "pass_low95", "pass_high95")}
    found = {"times_snip_directly": passes["pass_seconds"], "times_snip_by_the_engine": row["engine_seconds"] / seconds}
    ends = {"times_snip_directly": (passes["pass_low95"], passes["pass_high95"])}
    return Finding(found, ends, scope=_over(exact, "LeNet-5"))


def c25a(runs: pd.DataFrame, short: pd.DataFrame, *, sparsities: Sequence[float], smallest_margin: float) -> Finding:
    rates = _last_rates(runs)
    tests, margin = comparisons.equivalence(rates, sparsities=sparsities, smallest_margin=smallest_margin)
    tests = tests.set_index("criterion")
    snip, random = tests.loc["snip"], tests.loc["random"]
    found = {"equivalence_p": snip["equivalence_p"], "random_equivalence_p": random["equivalence_p"]}
    found |= {"random_excess_low": random["low95"] - margin, "margin": margin}
    pairs = comparisons.differences(rates[rates["sparsity"].isin(sparsities)], reference="exact")
    each = pairs[pairs["criterion"] == "snip"].groupby("seed")["difference"].mean().to_numpy()
    mean, low, high = mean_interval(each, level=ONE_SIDED)
    found |= {"mean_difference": mean, "beyond_margin": max(low, -high) - margin} | _power(each, margin)
    if len(short) and short["n"].min() > 1:  # few epochs, once there is more than one seed of them
        row = short.set_index("criterion").loc["snip"]
        found |= {f"short_{name}": row[name] for name in ("n", "mean_difference", "equivalence_p")}
    scope = f"LeNet-5, {len(sparsities)} sparsities, {_epochs(runs)}"
    return Finding(found, {"mean_difference": (low, high)}, int(snip["n"]), scope)


def c25b(
    runs: pd.DataFrame, short_runs: pd.DataFrame, published: pd.DataFrame, *, num_scored: int, assay_scored: int
) -> Finding:
    means, outside = published.dropna(subset=["error_percent"]), []
    for own, scored in ((runs, num_scored), (short_runs, assay_scored)):
        own = own[own["criterion"].isin(means["criterion"])]
        placed = comparisons.place_levels(_best_rates(own), published, num_scored=scored)
        t = placed["difference"].abs() / (placed["expected_difference"] / 1.96)
        outside.append((2 * stats.t.sf(t, placed["n"] - 1) * len(placed) <= 0.05).sum())  # jointly: Bonferroni
    found = {"means_outside": outside[0], "assay_outside": outside[1], "means": len(means)}
    tried = runs[runs["criterion"].isin(means["criterion"])]
    n = tried.groupby(["criterion", "sparsity"])["init_seed"].nunique().min()
    return Finding(found, n=int(n), scope=f"LeNet-5, {_epochs(runs)}, best one on the scored images")


# --- Figure 2 (notebook 03) -------------------------------------------------------------------------------------------


def c12b(counts: pd.DataFrame, published: pd.DataFrame) -> Finding:
    own = counts[counts["ranking"] == "snip"].groupby(["sparsity", "seed"])["kept"].sum().unstack("sparsity")
    other = (own != published.groupby("sparsity")["kept"].sum()[own.columns]).to_numpy().sum()
    scope = f"LeNet-5, sparsity {' and '.join(f'{s:g}' for s in own.columns)}"
    return Finding({"seeds_with_another_total": other}, n=len(own), scope=scope)


c12a = c12b


def c32(counts: pd.DataFrame, published: pd.DataFrame) -> Finding:
    own = counts[counts["ranking"] == "snip"].pivot(index="seed", columns=["sparsity", "label"], values="kept")
    cells = list(zip(published["sparsity"], published["layer"], strict=True))
    fit = table_fit(published["kept"].to_numpy(), own[cells].to_numpy())
    return Finding({"share_as_extreme": fit.p_value, "counts_outside": fit.outside}, n=len(own), scope="20 counts")


def c33(errors: pd.DataFrame, published: pd.DataFrame, protocol: pd.DataFrame, assay: pd.DataFrame) -> Finding:
    facts = protocol.set_index("what")
    seeds = _best(errors).pivot(index="seed", columns="sparsity", values="error_percent")
    found = {f"best_error_percent_at_{sparsity:g}": value for sparsity, value in seeds.mean().items()}
    n, scope = len(seeds), f"LeNet-5, {facts['here']['epochs']} epochs, best one on the scored images"
    if not facts["same"].all():
        return Finding(found, n=n, scope=scope, not_run="not the published protocol")
    placed = comparisons.place_errors(errors, published, num_scored=int(facts["here"]["images scored"]))
    short = placed["sparsity"].map(_best(assay).groupby("sparsity")["error_percent"].mean())
    found["outside_interval"] = (~placed["inside"]).sum()
    found["assay_outside"] = ((short < placed["low"]) | (short > placed["high"])).sum()
    contrast = mean_interval((seeds[0.5] - seeds[0.0]).to_numpy(), level=ONE_SIDED)
    rates = published.set_index("sparsity")["error_percent"]
    found |= {"half_minus_dense": contrast[0], "published_half_minus_dense": rates[0.5] - rates[0.0]}
    found |= {"sum_of_three": seeds.sum(axis=1).mean(), "published_sum_of_three": rates.sum()}
    return Finding(found, {"half_minus_dense": contrast[1:]}, n, scope)


def c37(published: pd.DataFrame) -> Finding:
    return Finding({"largest_percent": published["error_percent"].max()}, scope="Figure 2, result")


def c38(image_counts: pd.DataFrame, published: pd.DataFrame) -> Finding:
    cells, found = list(zip(published["sparsity"], published["layer"], strict=True)), {}
    for way, part in image_counts.groupby("way", sort=False):
        own = part.pivot(index="seed", columns=["sparsity", "label"], values="kept")[cells]
        found[f"p_{way}"] = table_fit(published["kept"].to_numpy(), own.to_numpy()).p_value
    return Finding(found, n=image_counts["seed"].nunique(), scope=f"LeNet-5, {len(cells)} counts")


# --- seeds (notebook 04) ----------------------------------------------------------------------------------------------


def c11(scores: pd.DataFrame, held_out: pd.DataFrame, *, candidates: Sequence[str]) -> Finding:
    xavier, able = scores["init"].str.startswith("xavier"), scores["init"].isin(candidates)
    best, other = scores.loc[xavier, "p_value"].max(), scores.loc[~xavier, "p_value"].max()
    found: dict[str, float] = {"best_xavier_p": best, "best_other_p": other, "xavier_fits_best": best > other}
    found["attribution_accuracy"] = comparisons.right_side(held_out)
    found["accuracy_of_candidates"] = comparisons.right_side(held_out[held_out["init"].isin(candidates)])
    found["xavier_p"] = scores.loc[xavier & able, "p_value"].max()
    found["pytorch_p"] = _at(scores, "p_value", init="pytorch")
    return Finding(found, n=int(scores["n"].min()), scope=f"20 counts, {len(candidates)} initialisations")


def c31(controls: pd.DataFrame, *, fresh_from: int) -> Finding:
    tensors = controls[controls["condition"].isin(["SNIP", "random"])]
    layers = tensors.assign(layer=tensors["layer"].str.split(".").str[0])
    layers = layers.groupby(["condition", "seed", "layer"], sort=False)[["kept", "parameters"]].sum().reset_index()
    old = comparisons.variance_split(tensors, by=["condition"]).set_index("condition")
    new = comparisons.variance_split(layers, by=["condition"], level=ONE_SIDED).set_index("condition")
    rows = {"share_between_layers": old.loc["SNIP"], "share_under_random": old.loc["random"]}
    rows |= {"share_between_five_layers": new.loc["SNIP"], "five_under_random": new.loc["random"]}
    found = {name: row["share"] for name, row in rows.items()}
    ends = {name: (row["low"], row["high"]) for name, row in rows.items()}
    for number, counts in (("ten_tensors", tensors), ("five_layers", layers)):
        found[f"noise_ceiling_{number}"] = comparisons.share_by_chance(counts[counts["condition"] == "SNIP"])
    wide = layers[layers["condition"] == "SNIP"].pivot(index="seed", columns="layer", values="kept")
    first, second = wide.iloc[0 : len(wide) // 2 * 2 : 2].to_numpy(), wide.iloc[1::2].to_numpy()
    change = np.abs(first - second) / ((first + second) / 2)
    most = change[:, np.argmax(np.median(change, axis=0))]
    found["largest_typical_change"] = np.median(most)
    ends["largest_typical_change"] = tuple(stats.quantile_test(most, p=0.5).confidence_interval(ONE_SIDED))
    scope = f"LeNet-5, sparsity {controls['sparsity'].iloc[0]:g}, five layers, {_seeds(layers['seed'])}"
    return Finding(found, ends, int(old["n"].min()), scope, not_fresh=_if_seen(layers["seed"], fresh_from))


def c34(magnitudes: pd.DataFrame, variance: pd.DataFrame) -> Finding:
    row = variance.iloc[0]
    scope = f"LeNet-5, sparsity {row['sparsity']:g}"
    return Finding({"largest_ratio_low_to_middle": magnitudes["ratio"].max()}, n=int(row["n"]), scope=scope)


# --- second order (notebook 05) ---------------------------------------------------------------------------------------


def c18(curvature: pd.DataFrame) -> Finding:
    row = curvature.set_index("way").loc["diagonal"]
    ends = (row["in_gradients_low95"], row["in_gradients_high95"])
    scope = _over(curvature, "this package's exact diagonal")
    return Finding({"cost_in_gradients": row["in_gradients"]}, {"cost_in_gradients": ends}, scope=scope)


def c19(formulas: pd.DataFrame) -> Finding:
    return Finding({"symbolic_differences": int(not formulas["exact"].iloc[1])}, scope="symbols")


def c20(formulas: pd.DataFrame, orders: pd.DataFrame) -> Finding:
    exactly = formulas.set_index(formulas["formula"].str.split(":").str[0])["exact"]
    rho = _mean_of(orders, "spearman")
    found = {f"{name}_symbolic_differences": float(not exactly[name]) for name in ("printed", "corrected")}
    found["corrected_minus_printed_spearman"] = rho["second_order"] - rho["printed_second_order"]
    return Finding(found, scope="symbols; LeNet-5 at its start")


def c21(quadratic_errors: pd.DataFrame) -> Finding:
    error = quadratic_errors.set_index("formula")["largest_error"]
    return Finding({f"{name}_error": error[name] for name in ("printed", "corrected")}, scope="a quadratic loss")


def c22(nested: pd.DataFrame) -> Finding:
    higher = nested[nested["order"] > 2]
    scope = f"orders 3 and 4, {nested['network'].nunique()} piecewise-linear networks"
    return Finding({"largest_error": higher["largest_error"].max()}, scope=scope)


def c28(
    orders: pd.DataFrame, histories: pd.DataFrame, *, sparsity: float, largest_gain: float, fresh_from: int
) -> Finding:
    overlap = _mean_of(orders, "overlap")
    rates = _last_rates(histories[histories["sparsity"] == sparsity])
    pairs = comparisons.differences(rates[rates["criterion"].isin(["snip", "second_order"])], reference="second_order")
    gains = pairs["difference"].to_numpy()
    found = {"overlap_gain": overlap["second_order"] - overlap["snip"], "error_gain_high": mean_interval(gains)[2]}
    gain, low, high = mean_interval(gains, level=ONE_SIDED)
    found |= {"gain": gain} | _power(gains, largest_gain, sides=1)
    scope = f"LeNet-5, sparsity {sparsity:g}, {_epochs(histories)}, {_seeds(pairs['seed'])}"
    return Finding(found, {"gain": (low, high)}, len(gains), scope, not_fresh=_if_seen(pairs["seed"], fresh_from))


# --- rules of thumb (notebook 06) -------------------------------------------------------------------------------------


def c2(histories: pd.DataFrame, *, sparsity: float) -> Finding:
    pairs = {
        f"{name}_minus_snip": _paired(histories, f"snip_{name}", "snip", sparsity=sparsity)
        for name in ("inverted", "shuffled")
    }
    return _of_pairs(histories, pairs, sparsity)


def c3(greedy: pd.DataFrame) -> Finding:
    best = greedy[greedy["ranking"] == "exact"].groupby("seed")["is_best"].all()
    return Finding({"seeds_where_greedy_fails": 1 - best.mean()}, n=len(best), scope="toy networks of 16 parameters")


def c4(joint: pd.DataFrame, *, sparsities: Sequence[float]) -> Finding:
    some = joint[(joint["state"] == START) & (joint["criterion"] == "snip") & joint["sparsity"].isin(sparsities)]
    if some["ratio"].isna().any() or set(some["sparsity"]) != set(sparsities):
        raise ValueError(f"ratios are needed at sparsities {list(sparsities)}; some are missing")
    distance = (some["ratio"] - 1).abs().groupby(some["sparsity"]).max()
    found = {"smallest_distance_from_one": distance.min(), "largest_distance_from_one": distance.max()}
    misses = {}
    for sparsity, own in some.groupby("sparsity"):
        miss = own["joint"] - own["sum_of_single"]
        misses[sparsity] = _root_mean_square(miss) / _root_mean_square(own["joint"])
        found[f"correlation_at_{sparsity:g}"] = own["joint"].corr(own["sum_of_single"])
    found |= {"smallest_relative_miss": min(misses.values()), "largest_relative_miss": max(misses.values())}
    return Finding(found, n=some["seed"].nunique(), scope=f"LeNet-5 at its start, {len(misses)} sparsities")


def c13(increases: pd.DataFrame, histories: pd.DataFrame, *, sparsities: Sequence[float], allowed: float) -> Finding:
    table = comparisons.excess(increases[increases["sparsity"].isin(sparsities)], allowed=allowed)
    scope = f"{increases['name'].nunique()} recipes, {_epochs(histories)}"
    return Finding({"excess_increase": table["excess"].max()}, n=histories["init_seed"].nunique(), scope=scope)


def c29(histories: pd.DataFrame, *, sparsity: float) -> Finding:
    pairs = {
        f"minus_{name}": _paired(histories, "snip_densities", criterion, sparsity=sparsity)
        for name, criterion in (("uniform", "uniform"), ("erk", "erdos_renyi_kernel"))
    }
    return _of_pairs(histories, pairs, sparsity)


def c30(removal: pd.DataFrame, agreement: pd.DataFrame) -> Finding:
    half = removal[(removal["ranking"] == "snip") & (removal["sparsity"] == 0.5)]
    rho = _at(agreement, "spearman", ranking="snip", layer=WHOLE)
    found = {"spearman": rho, "error_increase": half["increase"].mean()}
    return Finding(found, n=len(half), scope="trained LeNet-5, half removed, not retrained")


def c35(histories: pd.DataFrame, *, sparsity: float, smallest_margin: float) -> Finding:
    here = _last_rates(histories[histories["sparsity"] == sparsity])
    margin = comparisons.margin_of(here, reference="snip", smallest=smallest_margin)
    pairs = comparisons.differences(here, reference="snip")
    values = pairs.loc[pairs["criterion"] == "closed_form", "difference"].to_numpy()
    mean, low, high = mean_interval(values)
    found = {"non_inferiority_p": non_inferiority_test(values, margin), "closed_form_minus_snip": mean}
    scope = f"LeNet-5, sparsity {sparsity:g}, {_epochs(histories)}"
    return Finding(found | {"margin": margin}, {"closed_form_minus_snip": (low, high)}, n=len(values), scope=scope)


# --- larger networks (notebook 07) ------------------------------------------------------------------------------------


def c26(projection: pd.DataFrame) -> Finding:
    whole = projection[projection["images"] == projection["images"].max()].set_index("way")
    ways = {"naive_minutes": "one pass per parameter", "engine_minutes": "engine"}
    ends = {name: (whole["low95"][way], whole["high95"][way]) for name, way in ways.items()}
    found = {name: whole["minutes"][way] for name, way in ways.items()}
    return Finding(found, ends, scope=f"VGG16, {whole['images'].iloc[0]:,} images, this processor")


def c27(sweep: pd.DataFrame, *, layers_more: Sequence[int]) -> Finding:
    deeper = sweep[sweep["family"] == sweep["family"].iloc[0]]
    slopes = [stats.linregress(own["layers"], own["spearman"]).slope for _, own in deeper.groupby("seed")]
    slope, low, high = mean_interval(np.array(slopes))
    scope = f"LeNet-5 with up to {max(layers_more)} layers more"
    return Finding({"slope": slope}, {"slope": (low, high)}, n=len(slopes), scope=scope)


# --- parts ------------------------------------------------------------------------------------------------------------


def _at(frame: pd.DataFrame, column: str, **where: object) -> float:
    """The value in the one row of a table where columns have these values."""
    for name, value in where.items():
        frame = frame[frame[name] == value]
    return float(frame[column].item())


def _differing(symbolic: pd.DataFrame) -> int:
    """How many identities leave a difference."""
    return int((symbolic["difference"].astype(str) != "0").sum())


def _mean_of(orders: pd.DataFrame, measure: str) -> dict[str, float]:
    """Approximation -> its mean agreement with the exact salience, whole network at the start."""
    some = orders[(orders["state"] == START) & (orders["layer"] == WHOLE) & (orders["measure"] == measure)]
    return dict(zip(some["approximation"], some["mean"], strict=True))


def _last_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """Error rates at the last epoch, as :func:`snipnb.error_table` has them."""
    last = runs[runs["epoch"] == runs["epoch"].max()]
    found = last[["criterion", "sparsity"]].assign(seed=last["init_seed"], way=LAST)
    return found.assign(error_percent=100 * last["test_error"])


def _paired(runs: pd.DataFrame, first: str, second: str, *, sparsity: float) -> tuple[float, float, float]:
    """Mean paired difference of error rates at the last epoch, in points, and its interval."""
    return comparisons.paired(_last_rates(runs[runs["sparsity"] == sparsity]), first, second)


def _of_pairs(runs: pd.DataFrame, pairs: Mapping[str, tuple[float, float, float]], sparsity: float) -> Finding:
    scope = f"LeNet-5, sparsity {sparsity:g}, {_epochs(runs)}"
    found = {name: pair[0] for name, pair in pairs.items()}
    return Finding(found, {name: pair[1:] for name, pair in pairs.items()}, runs["init_seed"].nunique(), scope)


def _best(errors: pd.DataFrame) -> pd.DataFrame:
    """The rates of the best epoch on the scored images."""
    return errors[errors["way"] == comparisons.BEST]


def _best_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """Error rates at the best epoch on the scored images, as :func:`snipnb.error_table` has them."""
    best = 100 * runs.groupby(["criterion", "sparsity", "init_seed"], sort=False)["test_error"].min()
    return best.rename("error_percent").reset_index().assign(way=comparisons.BEST)


def _power(values: np.ndarray, margin: float, *, sides: int = 2, wanted: float = 0.8) -> dict[str, float]:
    """The power of a test on these differences at no difference, and the n for which it would be ``wanted``; empty without a spread."""
    if len(values) < 2 or not (spread := values.std(ddof=1)) > 0:
        return {}
    power = {n: power_of(spread / n**0.5, n, margin, sides=sides) for n in (len(values), *range(2, 1000))}
    enough = next((n for n in range(2, 1000) if power[n] >= wanted), np.inf)
    return {"power": power[len(values)], "n_to_decide": enough}


def _root_mean_square(values: pd.Series) -> float:
    return float((values**2).mean() ** 0.5)


def _epochs(runs: pd.DataFrame) -> str:
    return f"{runs['epoch'].max()} epochs"


def _seeds(seeds: pd.Series) -> str:
    return f"seeds {seeds.min()} to {seeds.max()}"


def _if_seen(seeds: pd.Series, fresh_from: int) -> str:
    """Why a rule that was registered before the seeds from this one on were looked at cannot be applied; empty if it can."""
    return "" if seeds.min() >= fresh_from else f"its rule asks for seeds from {fresh_from} on"


def _over(benchmark: pd.DataFrame, what: str) -> str:
    """What was timed, over how many images."""
    return f"{what}, {benchmark['images'].iloc[0]:,} images"
