"""The explorer, one page that needs no network: LeNet-5 with its weights, loss paths and masks. ``make explorer``, and part of ``make site``."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import snipnb
from snipnb._checks import Salience
from snipnb._files import write_atomically
from snipnb.data import PIXEL_MEAN, PIXEL_STD
from tools import checkout

SOURCES = Path("docs/explorer")
IMAGES = 200  # that losses are averaged over
SEED = 0
EPOCHS = 5
LARGEST = 3_000_000  # bytes of the page
WAY = "best epoch on scored images"  # as the write-up's Figure 1
DRAWN = ("snip", "exact")
PLACEHOLDER = re.compile(r"\{\{ (\w+) \}\}")


@dataclass(frozen=True)
class State:
    """A network at one time, with the saliences of all its parameters.

    Attributes:
        name: What the page calls it.
        model: The network, in float64.
        snip: Name -> SNIP's salience, in float32.
        exact: Name -> exact salience, in float32.
        errors: How many images of the test sample it misreads.
    """

    name: str
    model: nn.Module
    snip: Salience
    exact: Salience
    errors: int


@dataclass(frozen=True)
class Content:
    """What the page is made from: images [n, 1, 28, 28] in float64, labels, networks, and the folder of published figures."""

    images: Tensor
    labels: Tensor
    states: dict[str, State]
    training_images: int
    test_images: int
    epochs: int
    figures: Path


def collect(figures: Path, *, epochs: int = EPOCHS) -> Content:
    """Train the network on the shipped sample, and take the saliences before and after.

    Saliences are computed in float64 and rounded once, so that the number of threads does not matter.

    Args:
        figures: Folder of the published figures.
        epochs: Passes over the training images.
    """
    train, test = (snipnb.load_mnist(part, sample=True) for part in ("train", "test"))
    images, labels = test[0][:IMAGES].double(), test[1][:IMAGES]
    trained = snipnb.lenet5(seed=SEED)
    split = snipnb.Split.of("explorer", train=train, test=test)
    snipnb.train(trained, split, recipe=snipnb.Recipe(epochs=epochs))
    models = {"initial": ("initial weights", snipnb.lenet5(seed=SEED)), "trained": ("trained weights", trained)}
    states = {key: _state(name, model, images, labels, test) for key, (name, model) in models.items()}
    return Content(images, labels, states, len(train[0]), len(test[0]), epochs, figures)


def _state(name: str, model: nn.Module, images: Tensor, labels: Tensor, test: tuple[Tensor, Tensor]) -> State:
    with torch.no_grad():
        errors = int((model(test[0]).argmax(1) != test[1]).sum())
    model = model.double()
    saliences = (f(model, images, labels) for f in (snipnb.snip, snipnb.exact_salience))
    snip, exact = ({key: values.float() for key, values in salience.items()} for salience in saliences)
    return State(name, model, snip, exact, errors)


def data(content: Content) -> dict[str, Any]:
    """What the page's scripts read. Arrays are little-endian, as base64."""
    pixels = (content.images * PIXEL_STD + PIXEL_MEAN) * 255
    published = pd.read_csv(content.figures / "full" / "03_lenet5_table" / "figure2_reported.csv")
    parameters = dict(content.states["initial"].model.named_parameters())
    return {
        "images": _base64(pixels.round().to(torch.uint8).numpy()),
        "labels": content.labels.tolist(),
        "mean": PIXEL_MEAN,
        "deviation": PIXEL_STD,
        "tensors": [_tensor(name, p, published) for name, p in parameters.items()],
        "states": {
            key: {
                "name": state.name,
                "weights": _flat(dict(state.model.named_parameters())),
                "snip": _flat(state.snip),
                "exact": _flat(state.exact),
            }
            for key, state in content.states.items()
        },
        "errors": _errors(content.figures / "full" / "02_snip_vs_exact"),
    }


def _tensor(name: str, parameter: Tensor, published: pd.DataFrame) -> dict[str, Any]:
    """A tensor's names and shape, and what the write-up's table keeps of it."""
    label = snipnb.published_label(name)
    kept = published[published["label"] == label].set_index("sparsity")["kept_percent"]
    counts = {f"{sparsity:g}": round(percent * parameter.numel() / 100) for sparsity, percent in kept.items()}
    return {"name": name, "label": label, "shape": list(parameter.shape), "published": counts}


def _errors(folder: Path) -> list[dict[str, Any]]:
    """Figure 1's error rates in percent, with the published means."""
    measured, levels = pd.read_csv(folder / "figure1.csv"), pd.read_csv(folder / "levels.csv")
    rows = measured[(measured["way"] == WAY) & measured["criterion"].isin(DRAWN)]
    rows = rows.merge(levels[["criterion", "sparsity", "reported"]], on=["criterion", "sparsity"], how="left")
    return json.loads(rows.drop(columns="way").to_json(orient="records"))


def _flat(tensors: dict[str, Tensor] | Salience) -> str:
    return _base64(torch.cat([t.detach().flatten() for t in tensors.values()]).numpy().astype("<f4"))


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def page(content: Content, sources: Path) -> str:
    """The page, with styles, scripts and data inside.

    Raises:
        ValueError: If the template asks for something unknown, a script would end its element, or the page is too large.
    """
    files = {"style": "explorer.css", "network": "network.js", "page": "explorer.js"}
    parts = {part: (sources / name).read_text("utf-8").strip() for part, name in files.items()}
    if any("</" in text for text in parts.values()):
        raise ValueError(f"a style sheet or script of {sources} has '</', which may end its element")
    parts |= {
        "data": json.dumps(data(content), sort_keys=True).replace("<", "\\u003c"),
        "way": WAY,
        "seed": f"{SEED}",
        "images": f"{len(content.images):,}",
        "training_images": f"{content.training_images:,}",
        "test_images": f"{content.test_images:,}",
        "epochs": f"{content.epochs}",
        "parameters": f"{sum(p.numel() for p in content.states['initial'].model.parameters()):,}",
        **{f"{key}_error": f"{state.errors:,}" for key, state in content.states.items()},
    }
    made = fill((sources / "explorer.html").read_text("utf-8"), parts)
    if len(made.encode()) > LARGEST:
        raise ValueError(f"the page has {len(made.encode()):,} bytes; at most {LARGEST:,} are allowed")
    return made


def fill(template: str, parts: dict[str, str]) -> str:
    """The template with each ``{{ name }}`` replaced, once: what is put in is left as it is.

    Raises:
        ValueError: If the template names a part that is not given, or a given part has no place.
    """
    named = set(PLACEHOLDER.findall(template))
    if named != parts.keys():
        raise ValueError(f"the template's parts and the given ones differ: {', '.join(sorted(named ^ parts.keys()))}")
    return PLACEHOLDER.sub(lambda found: parts[found[1]], template)


def write(target: Path) -> None:
    """Make the page from the checkout, at a path."""
    root = checkout()
    write_atomically(target, page(collect(root / "figures"), root / SOURCES).encode())
