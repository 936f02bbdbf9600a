"""What ``NUMERICS`` stands for: masks and short trainings on the shipped sample, as numbers that later code is held to.

``python tests/golden/numerics.py`` writes ``numerics_<version>.json`` beside this file. It is written once for each version, by
the code that defines it; afterwards ``tests/test_golden.py`` compares.
"""

from __future__ import annotations

import base64
import json
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

import snipnb
from snipnb.networks import MODELS
from snipnb.pruning.criteria import mask_for, salience_for

FOLDER = Path(__file__).resolve().parent
SPARSITIES = (0.5, 0.95)
SALIENCE_IMAGES, TRAINED_IMAGES, SCORED_IMAGES = 200, 640, 500
DATA_SEED = 1  # with the images in the order of seed 0, rounding decides a gate, and weights have one of two norms
# Network -> the criteria whose masks are kept.
CRITERIA = {
    "lenet5": (
        "snip",
        "exact",
        "random",
        "magnitude",
        "second_order",
        "third_order",
        "linear_region",
        "printed_second_order",
        "snip_train_mode",
        "snip_shuffled",
        "snip_redrawn",
        "snip_densities",
        "closed_form",
        "erdos_renyi_kernel",
        "uniform",
        "snip_inverted",
    ),
    "lenet_300_100": ("snip", "magnitude"),
}
# Twenty steps each: four epochs of five batches of 128.
RECIPES = {
    "Adam, one-cycle": {"learning_rate": 0.01, "schedule": "one_cycle"},
    "Adam, steps": {"learning_rate": 0.0012, "schedule": "step", "decay_every": 2},
    "momentum, weight decay, cosine": {
        "optimiser": "sgd",
        "learning_rate": 0.05,
        "schedule": "cosine",
        "weight_decay": 0.0005,
    },
}
# The networks that are trained together: criterion and sparsity of each mask.
TRAINED = {
    "lenet5": (("snip", 0.0), ("snip", 0.5), ("snip", 0.95), ("exact", 0.95), ("random", 0.95), ("magnitude", 0.95)),
    "lenet_300_100": (("snip", 0.0), ("snip", 0.95), ("magnitude", 0.95)),
}


def measure() -> dict[str, Any]:
    """Everything that is compared, with whatever of Numba the process has."""
    split = snipnb.load_split("standard", sample=True)
    masks = {network: _masks(network, names, split) for network, names in CRITERIA.items()}
    return {
        "masks": {
            f"{network} {name} {sparsity:g}": _packed(mask)
            for network, found in masks.items()
            for (name, sparsity), mask in found.items()
            if sparsity
        },
        "trainings": {
            f"{network}, {name}": _trained(network, masks[network], snipnb.Recipe(epochs=4, **options), split)
            for network in CRITERIA
            for name, options in RECIPES.items()
        },
    }


def unpacked(text: str, count: int) -> np.ndarray:
    """The mask behind what :func:`measure` gives for it, flat, in the order of ``named_parameters``."""
    return np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8), count=count).astype(bool)


def _masks(network: str, names: tuple[str, ...], split: snipnb.Split) -> dict[tuple[str, float], snipnb.Mask]:
    few = slice(0, SALIENCE_IMAGES)

    def draw(seed: int) -> torch.nn.Module:
        return MODELS[network](seed=seed)

    start = snipnb.Start(draw(0), split.train_images[few], split.train_labels[few], seed=0, draw=draw)
    found = {}
    for name in names:
        salience = salience_for(name, start)
        for sparsity in (0.0, *SPARSITIES):
            found[name, sparsity] = mask_for(name, start, salience, sparsity)
    return found


def _packed(mask: snipnb.Mask) -> str:
    bits = np.concatenate([m.flatten().numpy() for m in mask.values()])
    return base64.b64encode(zlib.compress(np.packbits(bits).tobytes(), 9)).decode()


def _trained(network: str, masks: dict, recipe: snipnb.Recipe, split: snipnb.Split) -> dict[str, Any]:
    few = snipnb.Split(
        "golden",
        split.train_images[:TRAINED_IMAGES],
        split.train_labels[:TRAINED_IMAGES],
        split.validation_images[:SCORED_IMAGES],
        split.validation_labels[:SCORED_IMAGES],
        split.test_images[:SCORED_IMAGES],
        split.test_labels[:SCORED_IMAGES],
    )
    trained = TRAINED[network]
    models = [MODELS[network](seed=0) for _ in trained]
    histories = snipnb.train_together(
        models, few, masks=[masks[key] for key in trained], recipe=recipe, data_seed=DATA_SEED
    )
    return {
        f"{name} {sparsity:g}": {
            "losses": history["train_loss"].tolist(),
            "wrong": [round(SCORED_IMAGES * rate) for rate in history["test_error"]],
            "norms": {n: float(p.detach().double().norm()) for n, p in model.named_parameters()},
        }
        for (name, sparsity), history, model in zip(trained, histories, models, strict=True)
    }


if __name__ == "__main__":
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    if "--without-numba" in sys.argv:
        sys.modules["numba"] = None  # type: ignore[assignment]
    if "--print" in sys.argv:
        print(json.dumps(measure()))
    else:
        version = int(sys.argv[1]) if len(sys.argv) > 1 else 1
        (FOLDER / f"numerics_{version}.json").write_text(json.dumps(measure(), indent=1) + "\n")
