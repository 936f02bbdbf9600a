"""SNIP against the exact salience on deeper, wider and normalised networks and on VGG16, from samples of their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from snipnb._progress import track
from snipnb.networks import lenet_variant, set_running_statistics, vgg16_mnist
from snipnb.pruning.masks import layer_table
from snipnb.publish.comparisons import interval_of, slopes_by_seed
from snipnb.publish.stats import rank_correlation
from snipnb.saliences.agreement import agreement, relative_differences, sampled_saliences
from snipnb.saliences.snip import snip
from snipnb.studies.shared import quiet_mask

# Peak float32 operations per second of graphics processors of 2016 to 2019, from their data sheets.
PEAKS = {"Tesla P100 (PCIe)": 9.3e12, "Tesla T4": 8.1e12, "Tesla V100 (SXM2)": 15.7e12}
MINI_BATCH = 128  # images from which the published code takes its saliences by default
Network = Callable[..., nn.Sequential]
WIDTHS = (0.5, 1, 2, 4)
WEIGHTS = r"(conv|full)\d+\.weight"  # but not the weights of batch norm


def families(layers_more: Sequence[int]) -> dict[str, dict[int | float, Network]]:
    """Family -> value -> function of seed. The value is the number of layers added to LeNet-5, or the factor on its width."""
    return {
        "fully connected layers more": {n: partial(lenet_variant, extra_full=n) for n in layers_more},
        "convolutions more": {n: partial(lenet_variant, extra_conv=n) for n in layers_more},
        "fully connected, Xavier": {
            n: partial(lenet_variant, extra_full=n, init="xavier_uniform") for n in layers_more
        },
        "fully connected, batch norm": {n: partial(lenet_variant, extra_full=n, batch_norm=True) for n in layers_more},
        "times as wide": {n: partial(lenet_variant, width=n) for n in WIDTHS},
    }


def compare(model: nn.Sequential, images: Tensor, labels: Tensor, *, per_tensor: int, seed: int = 0) -> pd.DataFrame:
    """:func:`snipnb.sampled_saliences` after batch norms' statistics are set from the images, and SNIP in training mode, too.

    Args:
        model: The network; its batch norms' statistics are changed.
        images: [n, ...].
        labels: [n].
        per_tensor: Parameters per tensor.
        seed: Draw of the sample.

    Returns:
        One row per drawn parameter: ``layer``, ``weight``, ``exact``, ``snip``, ``train_mode`` (signed loss changes: SNIP with its sign reversed).
    """
    set_running_statistics(model, images)
    in_training = snip(model, images, labels, mode="train")
    others = {"train_mode": {name: -s for name, s in in_training.items()}}
    sample = sampled_saliences(model, images, labels, per_tensor=per_tensor, seed=seed, others=others)
    return sample[["layer", "weight", "exact", "snip", "train_mode"]]


def agreement_by_seed(sample: pd.DataFrame) -> pd.DataFrame:
    """:func:`agreement` of every network of a sample: its columns and ``seed``."""
    frames = [agreement(part.drop(columns="seed")).assign(seed=seed) for seed, part in sample.groupby("seed")]
    return pd.concat(frames, ignore_index=True)


def sweep(
    images: Tensor,
    labels: Tensor,
    *,
    seeds: Sequence[int],
    per_tensor: int,
    networks: Mapping[str, Mapping[int | float, Network]],
) -> pd.DataFrame:
    """Agreement of SNIP and exact salience over families of networks.

    Args:
        images: [n, 1, 28, 28].
        labels: [n].
        seeds: Initialisations of each network.
        per_tensor: Parameters drawn from every tensor, at most.
        networks: As from :func:`families`.

    Returns:
        One row per family, network and seed: ``family``, ``value``, ``layers`` (convolutions and linear layers), ``parameters``, ``seed``, and the columns
        of :func:`agreement` for SNIP in evaluation mode (without intervals), and ``train_mode_spearman``.
    """
    jobs = [(f, v, seed) for f, members in networks.items() for v in members for seed in seeds]
    rows = []
    for family, value, seed in track(jobs, "deeper and wider networks"):
        model = networks[family][value](seed=seed)
        sample = compare(model, images, labels, per_tensor=per_tensor, seed=seed)
        both = agreement(sample, resamples=0).set_index("salience")
        layers = sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules())
        row = {"family": family, "value": value, "layers": layers}
        row |= {"parameters": sum(p.numel() for p in model.parameters()), "seed": seed, "drawn": len(sample)}
        row |= both.loc["snip", ["spearman", "median_relative_difference"]].to_dict()
        rows.append(row | {"train_mode_spearman": both.loc["train_mode", "spearman"]})
    return pd.DataFrame(rows)


def slopes(swept: pd.DataFrame) -> pd.DataFrame:
    """:func:`snipnb.publish.comparisons.slopes_by_seed`, averaged over seeds.

    Returns:
        One row per family: ``family``, ``per``, ``n``, ``slope`` (mean over seeds), ``low95``, ``high95``, ``at_smallest``, ``at_largest`` (mean correlations).
    """
    rows = []
    for (family, per), part in slopes_by_seed(swept).groupby(["family", "per"], sort=False):
        ends = swept[swept["family"] == family].groupby("value")["spearman"].mean()
        row = {"family": family, "per": per, "n": len(part)} | interval_of(part["slope"].to_numpy())
        rows.append(row | {"at_smallest": ends.iloc[0], "at_largest": ends.iloc[-1]})
    return pd.DataFrame(rows).rename(columns={"mean": "slope"})


# --- VGG16 ------------------------------------------------------------------------------------------------------------


def compare_vgg(images: Tensor, labels: Tensor, *, seeds: Sequence[int], per_tensor: int) -> pd.DataFrame:
    """:func:`compare` for VGG16 with batch norm, several seeds: its columns and ``seed``."""
    frames = [
        compare(vgg16_mnist(seed=seed), images, labels, per_tensor=per_tensor, seed=seed).assign(seed=seed)
        for seed in track(list(seeds), "VGG16")
    ]
    return pd.concat(frames, ignore_index=True)


def by_depth(sample: pd.DataFrame) -> pd.DataFrame:
    """How far SNIP is off within each weight tensor, over the drawn parameters of all networks.

    Returns:
        One row per weight tensor in order: ``layer``, ``place`` (from 1), ``drawn``, ``spearman`` (mean over networks), ``median_relative_difference``,
        ``lower``, ``upper`` (quartiles of the relative difference).
    """
    rows = []
    weights = sample[sample["layer"].str.match(WEIGHTS)]
    for place, (layer, part) in enumerate(weights.groupby("layer", sort=False), 1):
        off = relative_differences(part["snip"].to_numpy(), part["exact"].to_numpy())
        low, middle, high = np.percentile(off, [25, 50, 75]) if len(off) else (np.nan,) * 3
        each = part[["snip", "exact"]].abs().groupby(part["seed"])
        spearman = np.mean([rank_correlation(*own.to_numpy().T) for _, own in each])
        row = {"layer": layer, "place": place, "drawn": len(part), "spearman": spearman}
        rows.append(row | {"median_relative_difference": middle, "lower": low, "upper": high})
    return pd.DataFrame(rows)


def vgg_layers(images: Tensor, labels: Tensor, *, seed: int, sparsity: float) -> pd.DataFrame:
    """What SNIP keeps of each weight tensor of VGG16, in evaluation mode with set and with untouched statistics, and in training mode.

    Returns:
        ``mode`` (``"eval"``, ``"train"``, and ``"untouched statistics"``: evaluation mode with statistics 0 and 1), ``layer``, ``parameters``, ``kept_percent``.
    """
    frames = []
    for mode in ("eval", "train", "untouched statistics"):
        model = vgg16_mnist(seed=seed)
        if mode != "untouched statistics":
            set_running_statistics(model, images)
        how = "train" if mode == "train" else "eval"
        found = snip(model, images, labels, batch_size=100, mode=how)
        table = layer_table(quiet_mask(found, sparsity))
        table = table[table["layer"].str.match(WEIGHTS)]
        frames.append(table.assign(mode=mode, kept_percent=100 * table["kept"] / table["parameters"]))
    return pd.concat(frames, ignore_index=True)[["mode", "layer", "parameters", "kept_percent"]]


@torch.no_grad()
def passes_at_peak() -> pd.DataFrame:
    """The least time that one forward pass per parameter of VGG16 takes, at the peak speed of graphics processors.

    Returns:
        One row per processor: ``processor``, ``teraflops`` (operations per second, peak), ``parameters``, ``gigaflop_per_pass`` (counted, one image),
        ``minutes_for_one_image``, ``images_in_an_hour``, ``hours_for_a_mini_batch`` (of :data:`MINI_BATCH`).
    """
    model = vgg16_mnist(seed=0).eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, 28, 28))
    count, each = sum(p.numel() for p in model.parameters()), counter.get_total_flops()
    rows = []
    for name, peak in PEAKS.items():
        minutes = count * each / peak / 60
        row = {"processor": name, "teraflops": peak / 1e12, "parameters": count, "gigaflop_per_pass": each / 1e9}
        row |= {"minutes_for_one_image": minutes, "images_in_an_hour": 60 / minutes}
        rows.append(row | {"hours_for_a_mini_batch": minutes * MINI_BATCH / 60})
    return pd.DataFrame(rows)


@torch.no_grad()
def spread_over_images(images: Tensor) -> pd.DataFrame:
    """How much the logits of VGG16 in evaluation mode depend on the image, before and after batch norms' statistics are set.

    Returns:
        ``statistics``, ``deviation`` (largest standard deviation of a logit over images).
    """
    model = vgg16_mnist(seed=0).eval()
    before = float(model(images).std(0).max())
    after = float(set_running_statistics(model, images, batch_size=len(images))(images).std(0).max())
    return pd.DataFrame({"statistics": ["0 and 1, as they start", "set from the images"], "deviation": [before, after]})
