"""What the tables of notebook 01 say about its claims."""

from __future__ import annotations

import pandas as pd

from snipnb.publish.evidence.parts import Finding, differing, value_at


def c6(step_errors: pd.DataFrame, rankings: pd.DataFrame, *, step: float, sparsity: float) -> Finding:
    errors = step_errors.loc[step_errors["step"] == step, "error"]
    found = {"additive_overlap": value_at(rankings, "overlap", ranking="gradient")}
    found |= {"median_step_error": errors.median(), "largest_step_error": errors.max()}
    return Finding(found, scope=f"LeNet-5, sparsity {sparsity:g}, {len(errors)} parameters sampled")


c7 = c6


def c8(indicators: pd.DataFrame, rankings: pd.DataFrame, *, sparsity: float) -> Finding:
    overlap = value_at(rankings, "overlap", ranking="signed salience")
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
    found = {"symbolic_differences": differing(symbolic)}
    return Finding(found | {"relative_difference": indicators["relative_difference"].max()}, scope="symbols; LeNet-5")


def c16(operations: pd.DataFrame, indicators: pd.DataFrame) -> Finding:
    found = {"operations_over_one_gradient": operations["over_one_gradient"].iloc[-1]}
    return Finding(found | {"relative_difference": indicators["relative_difference"].max()}, scope="LeNet-5")


def c17(symbolic: pd.DataFrame, remainder_orders: pd.DataFrame) -> Finding:
    orders = remainder_orders["order"].dropna()
    found = {"symbolic_differences": differing(symbolic), "median_remainder_order": orders.median()}
    return Finding(found, scope=f"symbols; LeNet-5, {len(orders)} sampled parameters with a remainder above rounding")


def c23(linearity: pd.DataFrame) -> Finding:
    linear = linearity[linearity["case"] == linearity["case"].iloc[0]]
    return Finding({"largest_error": linear["error"].max()}, scope=f"{len(linear)} parameters of a linear network")
