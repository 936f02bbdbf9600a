"""Speed, measured side by side in one process: ``make bench`` writes tables to ``figures/bench/``; nothing else times anything.

A machine's speed varies from minute to minute, so every claim is a ratio of two times that are measured in turn, several times, in
one run. Seconds are given for orientation.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from snipnb._files import write_atomically
from snipnb._progress import note, track
from snipnb.data import Split
from snipnb.networks import lenet5, set_running_statistics, vgg16_mnist
from snipnb.pruning.masks import Mask, keep_mask
from snipnb.publish.comparisons import interval_of
from snipnb.publish.evidence.second_order import APPROXIMATE
from snipnb.saliences.brute_force import stratified_sample
from snipnb.saliences.exact import exact_salience
from snipnb.saliences.snip import snip, snip_together
from snipnb.saliences.taylor import derivatives, diagonal_hessian, row_sum_hessian, taylor_salience
from snipnb.training.loop import train_together
from snipnb.training.plain import plain_training
from snipnb.training.recipe import Recipe
from tools import curvature

PRUNED = 0.95  # sparsity of the pruned networks that are trained together
TOGETHER = "networks together"
PASSES = "one pass per parameter"
BATCH = 500  # images per pass, both for the loop and for gradients


Table = Callable[[], pd.DataFrame]


def tables(images: Tensor, labels: Tensor, *, threads: int) -> dict[str, Table]:
    """Name -> what measures the table, on these images: all of MNIST's training images for the numbers that claims use."""
    model = lenet5(seed=0)
    return {
        "snip": lambda: snip_cost(model, images, labels),
        "curvature": lambda: curvature_cost(model, images, labels),
        "exact": lambda: exact_against_loop(model, images, labels),
        "exact_layers": lambda: by_layer(model, images[:6000], labels[:6000]),
        "exact_growth": lambda: growth(images, labels),
        "training": lambda: training_against_plain(images, labels, threads=threads),
        "larger": lambda: vgg_cost(images, labels),
    }


def run(folder: Path, wanted: Mapping[str, Table], *, threads: int, machine: dict[str, object]) -> list[Path]:
    """Measure everything and write the tables, with a file next to them that describes the machine.

    Args:
        folder: Where the tables go.
        wanted: As from :func:`tables`.
        threads: Processor threads.
        machine: What is known about the machine.

    Returns:
        The files written.
    """
    torch.set_num_threads(threads)
    written = []
    for name, measure in wanted.items():
        note(f"measuring {name}")
        frames = {name: measure()}
        if name == "larger":
            frames["projection"] = projection(frames[name])
        for stem, table in frames.items():
            write_atomically(folder / f"{stem}.csv", table.to_csv(index=False, float_format="%.4g"))
            write_atomically(folder / f"{stem}.md", table.to_markdown(index=False, floatfmt=".4g") + "\n")
            written += [folder / f"{stem}.csv", folder / f"{stem}.md"]
    facts = {**machine, "threads": threads, "torch": torch.__version__, "matmul_gflops": matmul_speed() / 1e9}
    values = [f"{value:.4g}" if isinstance(value, float) else value for value in facts.values()]
    described = folder / "machine.csv"
    write_atomically(described, pd.DataFrame({"fact": list(facts), "value": values}).to_csv(index=False))
    return [*written, described]


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def matmul_speed(size: int = 1500, repeats: int = 5) -> float:
    """Operations per second of a large square float32 matrix product, the best of a few."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    return 2 * size**3 / min(seconds(lambda: a @ b) for _ in range(repeats))


def in_turn(ways: Mapping[str, Callable[[], object]], rounds: int, description: str) -> pd.DataFrame:
    """Seconds that each way takes, measured in turn, a row per round; every way is called once before."""
    for way in ways.values():
        way()
    return pd.DataFrame([{name: seconds(way) for name, way in ways.items()} for _ in track(range(rounds), description)])


# --- what is compared -------------------------------------------------------------------------------------------------


@torch.no_grad()
def forward_pass(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The mean loss, by one plain forward pass over all images."""
    batches = zip(images.split(BATCH), labels.split(BATCH), strict=True)
    losses = [F.cross_entropy(model(x), y, reduction="sum") for x, y in batches]
    return float(torch.stack(losses).sum() / len(labels))


def gradient(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """One plain gradient of the mean loss over all images, accumulated by autograd."""
    model.zero_grad()
    for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        (F.cross_entropy(model(x), y, reduction="sum") / len(labels)).backward()


def one_by_one(model: nn.Module, images: Tensor, labels: Tensor, name: str, index: int) -> float:
    """The obvious way: set one parameter to zero, run all images, put it back."""
    parameter = dict(model.named_parameters())[name].data.view(-1)
    value = parameter[index].clone()
    parameter[index] = 0
    loss = forward_pass(model, images, labels)
    parameter[index] = value
    return loss


# --- the tables -------------------------------------------------------------------------------------------------------


def snip_cost(model: nn.Module, images: Tensor, labels: Tensor, *, rounds: int = 5) -> pd.DataFrame:
    """SNIP of every parameter compared with one gradient and one forward pass over the same images, in turn.

    Returns:
        One row per way: ``way``, ``seconds`` (mean), ``in_gradients`` with its 95 % t interval over rounds.
    """
    model = copy.deepcopy(model)
    ways = {
        "one forward pass": lambda: forward_pass(model, images, labels),
        "one gradient": lambda: gradient(model, images, labels),
        "SNIP of every parameter": lambda: snip(model, images, labels, batch_size=BATCH),
    }
    times, rows = in_turn(ways, rounds, "SNIP"), []
    for name in ways:
        row = {"way": name, "rounds": rounds, "images": len(images), "seconds": times[name].mean()}
        rows.append(row | interval_of(times[name] / times["one gradient"], "in_gradients", "low95", "high95"))
    return pd.DataFrame(rows)


def curvature_cost(
    model: nn.Sequential, images: Tensor, labels: Tensor, *, rounds: int = 7, few: int = 10_000
) -> pd.DataFrame:
    """Second and higher orders compared with one gradient, and with BackPACK's diagonal, over the same images, in turn.

    The diagonal and BackPACK's take all images; everything else takes the first ``few``. The approximate diagonal, where a claim is
    near its boundary, is measured in four times as many rounds, each beside a gradient of its own.

    Returns:
        One row per way: ``way``, ``rounds``, ``images``, ``seconds`` (mean), ``in_gradients`` (over the same images) with its 95 % t
        interval over rounds, ``of_backpack`` (ratio within a round) with its own; NaN where BackPACK was not measured or is not
        installed.
    """
    model = copy.deepcopy(model)
    ways: dict[str, Callable[[Tensor, Tensor], object]] = {
        "one gradient": lambda x, y: gradient(model, x, y),
        "diagonal": lambda x, y: diagonal_hessian(model, x, y),
    }
    if (backpack := curvature.backpack_diagonal(model)) is not None:
        ways["diagonal by BackPACK"] = backpack
    near: dict[str, Callable[[Tensor, Tensor], object]] = {
        "one gradient": ways["one gradient"],
        APPROXIMATE: lambda x, y: curvature.approximate_diagonal(model, x, y, batch_size=BATCH),
    }
    others: dict[str, Callable[[Tensor, Tensor], object]] = {
        "one gradient": ways["one gradient"],
        "first and second derivative": lambda x, y: derivatives(model, x, y, order=2),
        "derivatives to order 3": lambda x, y: derivatives(model, x, y, order=3),
        "linear region": lambda x, y: taylor_salience(model, x, y, order="linear-region"),
        "row sums": lambda x, y: row_sum_hessian(model, x, y),
        "Hutchinson, 1 sample": lambda x, y: curvature.hutchinson_sample(model, x, y),
    }
    rows = []
    for taken, number, times_each in ((ways, len(images), rounds), (near, few, 4 * rounds), (others, few, rounds)):
        x, y = images[:number], labels[:number]
        unit, each = "one gradient", []
        for way in taken.values():
            way(x[:BATCH], y[:BATCH])  # warm up
        for _ in track(range(times_each), "curvature"):
            each.append({name: seconds(partial(way, x, y)) for name, way in taken.items()})
            each[-1][unit] = (each[-1][unit] + seconds(partial(taken[unit], x, y))) / 2  # the gradient at both ends
        times = pd.DataFrame(each)
        for name in taken:
            row = {"way": name, "rounds": times_each, "images": len(x), "seconds": times[name].mean()}
            for column, other in (("in_gradients", unit), ("of_backpack", "diagonal by BackPACK")):
                ratio = times[name] / times.get(other, np.nan)
                row |= interval_of(ratio, column, f"{column}_low95", f"{column}_high95")
            rows.append(row)
    return pd.DataFrame(rows)


def exact_against_loop(model: nn.Module, images: Tensor, labels: Tensor, *, per_tensor: int = 2) -> pd.DataFrame:
    """The engine on every parameter compared with one pass per parameter, on a stratified sample of parameters and the same images.

    The passes before and after the engine's run are averaged, so that a machine that slows down in between counts for both.

    Returns:
        One row: ``images``, ``parameters``, ``engine_seconds``, ``passes`` (measured), ``pass_seconds`` with 95 % t interval,
        ``loop_hours`` (for all parameters), ``times_faster`` with interval, ``engine_in_passes``,
        ``engine_in_passes_over_parameters``, ``largest_difference`` (engine minus loop, on the sample).
    """
    model = copy.deepcopy(model)
    before = forward_pass(model, images, labels)
    sample = [(name, int(i)) for name, index in stratified_sample(model, per_tensor).items() for i in index]
    times, changes, found = [], [], {}

    def passes(some: Sequence[tuple[str, int]]) -> None:
        for name, index in track(some, "one pass per parameter"):
            start = time.perf_counter()
            changes.append((name, index, one_by_one(model, images, labels, name, index) - before))
            times.append(time.perf_counter() - start)

    passes(sample[::2])
    engine = seconds(lambda: found.update(exact_salience(model, images, labels)))
    passes(sample[1::2])
    count = sum(p.numel() for p in model.parameters())
    row = {"images": len(images), "parameters": count, "engine_seconds": engine, "passes": len(times)}
    row |= interval_of(np.array(times), "pass_seconds", "pass_low95", "pass_high95")
    each = row["pass_seconds"]
    row["loop_hours"] = each * count / 3600
    row["times_faster"] = each * count / engine
    row["times_faster_low95"] = row["pass_low95"] * count / engine
    row["times_faster_high95"] = row["pass_high95"] * count / engine
    row |= {"engine_in_passes": engine / each, "engine_in_passes_over_parameters": engine / each / count}
    row["largest_difference"] = max(abs(float(found[name].view(-1)[i]) - change) for name, i, change in changes)
    return pd.DataFrame([row])


def by_layer(model: nn.Module, images: Tensor, labels: Tensor) -> pd.DataFrame:
    """Where the engine's time goes, and at what share of the machine's matrix-product speed.

    Returns:
        One row per layer: ``layer``, ``parameters``, ``seconds_per_60000`` (scaled from the images given), ``matmul_tflop`` (in its
        matrix products, same scaling; linear layers need few), ``share_of_matmul_speed``.
    """
    rows = []
    scale = 60_000 / len(images)
    for layer in track(dict.fromkeys(name.split(".")[0] for name, _ in model.named_parameters()), "layers"):
        some = {name: torch.arange(p.numel()) for name, p in model.named_parameters() if name.startswith(f"{layer}.")}
        few = slice(0, 500)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the counter sees the calling thread only
        with FlopCounterMode(display=False) as counter:
            exact_salience(model, images[few], labels[few], parameters=some)
        torch.set_num_threads(threads)
        operations = counter.get_total_flops() * 60_000 / 500
        speed = matmul_speed()
        taken = scale * seconds(partial(exact_salience, model, images, labels, parameters=some))
        row = {"layer": layer, "parameters": sum(len(i) for i in some.values()), "seconds_per_60000": taken}
        rows.append(row | {"matmul_tflop": operations / 1e12, "share_of_matmul_speed": operations / taken / speed})
    return pd.DataFrame(rows)


def training_against_plain(
    images: Tensor, labels: Tensor, *, threads: int, networks: int = 16, num_images: int = 6_400, rounds: int = 7
) -> pd.DataFrame:
    """One epoch of many networks trained together, one group for each processor thread, compared with a plain loop with all threads.

    The networks are trained once with all parameters, and once pruned by SNIP to :data:`PRUNED`, which saves a plain loop no time.

    The plain loop is :func:`snipnb.training.plain.plain_training`: one LeNet-5 after the other, autograd, ``torch.optim.Adam``. Both use the same
    images, batches of 128 and an evaluation on 1,000 images, and are measured in turn.

    Returns:
        One row per way: ``way``, ``networks``, ``images``, ``rounds``, ``seconds`` (per network and epoch of this many images, mean over
        rounds), ``of_plain`` (ratio within a round) with its 95 % t interval, ``share_of_matmul_speed``.
    """
    x, y = images[:num_images], labels[:num_images]
    split = Split("standard", x, y, images[:0], labels[:0], images[:1000], labels[:1000])
    recipe = Recipe(epochs=1)
    with tempfile.TemporaryDirectory() as folder, joblib.Parallel(n_jobs=threads) as workers:
        np.savez(f"{folder}/split.npz", images=x.numpy(), labels=y.numpy())
        together = joblib.delayed(_train_group)
        saliences = snip_together([lenet5(seed=k) for k in range(networks)], x[:1000], y[:1000])
        masks = [keep_mask(salience, PRUNED) for salience in saliences]
        whole, pruned = ([together(folder, networks, recipe, m) for _ in range(threads)] for m in (None, masks))
        ways = {
            "plain loop": lambda: [plain_training(lenet5(seed=k), split, recipe=recipe) for k in range(4)],
            TOGETHER: lambda: workers(whole),
            f"{TOGETHER}, {PRUNED:g} pruned": lambda: workers(pruned),
        }
        counts = dict.fromkeys(ways, threads * networks) | {"plain loop": 4}
        times = in_turn(ways, rounds, "training") / pd.Series(counts)
    with FlopCounterMode(display=False) as counter:
        one = replace(split, train_images=images[:128], train_labels=labels[:128], test_images=images[:0])
        # of the plain loop: the counter does not see compiled convolutions
        plain_training(lenet5(), replace(one, test_labels=labels[:0]), recipe=recipe)
    operations, speed = counter.get_total_flops() * len(y) / 128, matmul_speed()
    rows = []
    for name, count in counts.items():
        row = {"way": name, "networks": count, "images": len(y), "rounds": rounds}
        row["seconds"] = times[name].mean()
        row |= interval_of(times[name] / times["plain loop"], "of_plain", "low95", "high95")
        share = operations / times[name].mean() / speed
        rows.append(row | {"share_of_matmul_speed": share if name in ("plain loop", TOGETHER) else float("nan")})
    return pd.DataFrame(rows)


def _train_group(folder: str, networks: int, recipe: Recipe, masks: list[Mask] | None) -> None:
    """Train some networks for one epoch in a worker, on one processor thread."""
    torch.set_num_threads(1)
    with np.load(f"{folder}/split.npz") as arrays:
        images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    split = Split("standard", images, labels, images[:0], labels[:0], images[:1000], labels[:1000])
    train_together([lenet5(seed=k) for k in range(networks)], split, masks=masks, recipe=recipe)


def vgg_cost(
    images: Tensor,
    labels: Tensor,
    *,
    num_images: int = 32,
    rounds: int = 3,
    model: nn.Sequential | None = None,
) -> pd.DataFrame:
    """What one exact salience of VGG16 costs: by one forward pass, and by the engine, layer by layer.

    The engine computes some parameters of one channel of a layer, another channel in each round, in the way it would if all were wanted. It
    starts with 8 parameters and takes 8 times as many until they take longer than the fixed cost of a call. The fixed cost is measured in the
    same round and subtracted. The parameters of a batch norm, 0.1 % of all, count with the layer before it.

    Args:
        images: The engine takes the first ``num_images``, the passes take the first 256.
        labels: Labels of the images.
        num_images: Images for the engine.
        rounds: How often everything is measured, in turn.
        model: Default VGG16 with its statistics set.

    Returns:
        One row per way: ``way`` (one pass, or the layer that the engine computes), ``parameters`` (in the layer; all for the pass), ``rounds``,
        ``milliseconds`` (per parameter and image, mean) with 95 % t interval over rounds, ``of_pass`` (in forward passes of the same round).
    """
    if model is None:
        model = vgg16_mnist(seed=0)
        set_running_statistics(model, images[:1000], batch_size=250)
    model.eval()
    some, x, y = slice(0, 256), images[:num_images], labels[:num_images]
    tensors = dict(model.named_parameters())
    last = next(reversed(tensors))
    layers = [name for name, p in tensors.items() if p.dim() > 1]
    counts: dict[str, int] = {}  # parameters by layer, a batch norm's with the layer before it
    for name, p in tensors.items():
        layer = name.rpartition(".")[0]
        own = layer if f"{layer}.weight" in layers else next(reversed(counts))
        counts[own] = counts.get(own, 0) + p.numel()
    forward_pass(model, images[some], labels[some])  # warm up
    exact_salience(model, x, y, parameters={last: torch.tensor([0])})
    times: dict[str, list[float]] = {PASSES: [], **{name.removesuffix(".weight"): [] for name in layers}}
    draw = torch.Generator().manual_seed(0)
    for _ in track(range(rounds), "VGG16"):
        passes = [seconds(lambda: forward_pass(model, images[some], labels[some])) / len(labels[some])]
        idle = seconds(lambda: exact_salience(model, x, y, parameters={last: torch.tensor([0])}))
        for name in layers:
            channels, columns = len(tensors[name]), tensors[name][0].numel()
            channel = int(torch.randint(channels, (1,), generator=draw))
            order, together, taken = torch.randperm(columns, generator=draw), 1, 0.0
            while taken < 2 * idle and together < columns:
                together *= 8
                index = channel * columns + order[:together]
                taken = seconds(partial(exact_salience, model, x, y, parameters={name: index}))
            times[name.removesuffix(".weight")].append(max(taken - idle, 0) / len(index) / len(y))
        passes.append(seconds(lambda: forward_pass(model, images[some], labels[some])) / len(labels[some]))
        times[PASSES].append(float(np.mean(passes)))
    rows = []
    for way, each in times.items():
        count = sum(counts.values()) if way == PASSES else counts[way]
        row = {"way": way, "parameters": count, "rounds": rounds}
        measured = interval_of(1000 * np.array(each), "milliseconds", "low95", "high95")
        row |= measured | {"low95": max(measured["low95"], 0.0)}
        rows.append(row | {"of_pass": float(np.mean(np.array(each) / np.array(times[PASSES])))})
    return pd.DataFrame(rows)


def projection(cost: pd.DataFrame) -> pd.DataFrame:
    """The time that all exact saliences would take, from :func:`vgg_cost`: nobody waits for it.

    The interval multiplies the interval of the measured times. The half-widths of layers are added, as if all erred to the same side.

    Returns:
        One row per way and number of images: ``way`` (one pass per parameter, engine), ``images``, ``parameters``, ``minutes``, ``low95``, ``high95``, ``years``.
    """
    naive = cost["way"] == PASSES
    rows = []
    for images in (60_000, 128):
        for way, part in ((PASSES, cost[naive]), ("engine", cost[~naive])):
            each = part[["milliseconds", "low95", "high95"]].mul(part["parameters"], axis=0).sum() * images / 1000 / 60
            row = {"way": way, "images": images, "parameters": int(part["parameters"].sum())}
            rows.append(row | each.rename({"milliseconds": "minutes"}).to_dict())
    return pd.DataFrame(rows).eval("years = minutes / 60 / 24 / 365.25")


def growth(images: Tensor, labels: Tensor) -> pd.DataFrame:
    """How the cost grows with images, width and depth: seconds, and seconds per parameter and image.

    Width multiplies the channels and units of LeNet-5's hidden layers; depth is the number of hidden linear layers.

    Returns:
        One row per case: ``grows``, ``value``, ``parameters``, ``images``, ``seconds``, ``nanoseconds_per_parameter_and_image``.
    """
    cases: list[tuple[str, float, nn.Module, int]] = [("images", n, lenet5(seed=0), n) for n in (500, 1000, 2000, 4000)]
    cases += [("width", w, lenet_like(width=w), 1000) for w in (0.5, 1, 2)]
    cases += [("depth", d, lenet_like(depth=d), 1000) for d in (1, 2, 3, 4)]
    exact_salience(lenet5(), images[:500], labels[:500])  # warm up
    rows = []
    for kind, value, model, n in track(cases, "growth"):
        count = sum(p.numel() for p in model.parameters())
        taken = seconds(partial(exact_salience, model, images[:n], labels[:n]))
        row = {"grows": kind, "value": value, "parameters": count, "images": n, "seconds": taken}
        rows.append(row | {"nanoseconds_per_parameter_and_image": 1e9 * taken / count / n})
    return pd.DataFrame(rows)


def lenet_like(*, width: float = 1, depth: int = 2) -> nn.Sequential:
    """LeNet-5 with hidden layers ``width`` times as wide and ``depth`` hidden linear layers (LeNet-5: 1 and 2)."""
    c1, c2, f1, f2 = (round(n * width) for n in (6, 16, 120, 84))
    hidden = [f1, *[f2] * (depth - 1)]
    layers: list[nn.Module] = [nn.Conv2d(1, c1, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(c1, c2, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        for inputs, outputs in zip([25 * c2, *hidden[:-1]], hidden, strict=True):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(hidden[-1], 10))
