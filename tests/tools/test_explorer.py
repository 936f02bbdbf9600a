"""The explorer's builder, and its numerics where Node.js is installed; ``make test-site`` opens the page in a browser."""

import base64
import dataclasses
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from tags import Page

import snipnb
from snipnb._files import project_root
from snipnb.saliences.brute_force import loss_along_weight
from tools import explorer

ROOT = project_root()
SOURCES = ROOT / explorer.SOURCES
SVG = "http://www.w3.org/2000/svg"  # a name, which nothing is loaded from


@pytest.fixture(scope="module")
def content():
    return explorer.collect(ROOT / "figures", epochs=1)


@pytest.fixture(scope="module")
def text(content):
    return explorer.page(content, SOURCES)


@pytest.fixture(scope="module")
def data(text):
    """What the page's scripts read."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])


def floats(text):
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f4").copy())


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors.values()])


def test_the_page_is_the_same_each_time_and_small(content, text):
    again = explorer.collect(ROOT / "figures", epochs=1)
    assert explorer.page(again, SOURCES) == text
    assert len(text.encode()) < explorer.LARGEST == 3_000_000


def test_nothing_is_loaded_from_elsewhere(text):
    page = Page(text)
    assert not page.all("link") + page.all("iframe") + page.all("object") + page.all("audio") + page.all("video")
    assert not [script for script in page.all("script") if "src" in script]
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert not re.findall(r"https?://", text.replace(SVG, ""))
    assert not re.findall(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket|importScripts|import\(", text)
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_every_placeholder_is_filled(text):
    assert "{{" not in text
    assert explorer.fill("{{ a }} {{ b }}", {"a": "{{ b }}", "b": "1"}) == "{{ b }} 1"
    with pytest.raises(ValueError, match="differ: b"):
        explorer.fill("{{ a }}", {"a": "1", "b": "2"})
    with pytest.raises(ValueError, match="differ: a"):
        explorer.fill("{{ a }}", {})


def test_what_scripts_ask_for_is_on_the_page(text):
    wanted = set(re.findall(r'element\("([\w-]+)"\)', (SOURCES / "explorer.js").read_text("utf-8")))
    ids = [a["id"] for _, a in Page(text).tags if a.get("id")]
    assert len(wanted) > 20
    assert wanted <= set(ids)
    assert len(ids) == len(set(ids))
    labelled = {a["for"] for a in Page(text).all("label") if "for" in a}
    assert labelled <= set(ids)


def change_of(content, state, name, index, factor):
    losses = loss_along_weight(state.model, content.images, content.labels, name, index, [1.0, factor])
    return float(losses[1] - losses[0])


def test_weights_images_and_saliences_are_the_packages(content, data):
    images, labels = snipnb.load_mnist("test", sample=True)
    pixels = torch.from_numpy(np.frombuffer(base64.b64decode(data["images"]), "u1").astype("f8"))
    shown = ((pixels / 255 - data["mean"]) / data["deviation"]).view(-1, 1, 28, 28)
    torch.testing.assert_close(shown, images[: explorer.IMAGES].double(), rtol=0, atol=1e-6)
    assert data["labels"] == labels[: explorer.IMAGES].tolist()
    initial = dict(snipnb.lenet5(seed=explorer.SEED).named_parameters())
    assert [t["name"] for t in data["tensors"]] == list(initial)
    assert torch.equal(floats(data["states"]["initial"]["weights"]), flat(initial))
    assert not torch.equal(floats(data["states"]["trained"]["weights"]), flat(initial))
    for key, state in content.states.items():
        assert torch.equal(floats(data["states"][key]["snip"]), flat(state.snip))
        assert torch.equal(floats(data["states"][key]["exact"]), flat(state.exact))


def test_exact_saliences_are_loss_changes(content):
    for state in content.states.values():
        for name, index in [("conv1.weight", 7), ("full1.weight", 5000), ("full3.bias", 3)]:
            change = change_of(content, state, name, index, 0.0)
            assert float(state.exact[name].flatten()[index]) == pytest.approx(change, rel=1e-5, abs=1e-12)


def test_published_values_are_the_tables(data):
    for sparsity, total in (("0.5", 30853), ("0.95", 3086)):
        assert sum(t["published"][sparsity] for t in data["tensors"]) == total
    rows = pd.read_csv(ROOT / "figures/full/02_snip_vs_exact/figure1.csv")
    rows = rows[(rows["way"] == explorer.WAY) & rows["criterion"].isin(explorer.DRAWN)]
    drawn = pd.DataFrame(data["errors"])
    columns = ["criterion", "sparsity", "n", "mean", "smallest", "largest"]
    pd.testing.assert_frame_equal(drawn[columns], rows[columns].reset_index(drop=True))
    assert drawn["reported"].notna().all()


def test_numbers_of_the_prose_come_from_the_run(content, text):
    prose = " ".join(re.sub(r"<[^>]+>", "", text.partition("<script")[0]).split())
    trained = content.states["trained"].errors
    assert f"after 1 epochs on 5,000 shipped training images. It misreads {trained} of the 1,000 test images" in prose
    assert "all its 61,706 weights" in prose


def test_texts_are_escaped(content):
    named = dataclasses.replace(content.states["initial"], name="</script><script>alert(1)</script>")
    text = explorer.page(dataclasses.replace(content, states=content.states | {"initial": named}), SOURCES)
    assert "<script>alert" not in text
    assert len(Page(text).all("script")) == 3


def test_a_script_that_would_end_its_element_is_refused(content, tmp_path):
    shutil.copytree(SOURCES, tmp_path / "sources")
    (tmp_path / "sources" / "network.js").write_text('"</script>"')
    with pytest.raises(ValueError, match="may end its element"):
        explorer.page(content, tmp_path / "sources")


NODE = """
const fs = require("fs");
const { Network, TENSORS, ranks, numKept, paths, TOTAL } = new Function(fs.readFileSync(process.argv[1], "utf8") + "; return SnipNetwork")();
const given = JSON.parse(fs.readFileSync(0, "utf8"));
const bytes = (text) => Uint8Array.from(Buffer.from(text, "base64"));
const images = Float64Array.from(bytes(given.images), (pixel) => (pixel / 255 - given.mean) / given.deviation);
const network = new Network(new Float32Array(bytes(given.weights).buffer), images, Uint8Array.from(given.labels));
network.prepare();
const rank = ranks(new Float32Array(bytes(given.snip).buffer));
const kept = (sparsity) => Uint8Array.from(rank, (r) => Number(r < numKept(sparsity)));
console.log(JSON.stringify({
  tensors: TENSORS.map(({ name, shape }) => [name, shape]),
  loss: network.loss,
  found: given.wanted.map(([tensor, index]) => {
    const switched = new Float64Array(6);
    network.changeOver(tensor, index, 0, 0, network.count, switched);
    const [change, half] = [0, 0.5].map((c) => network.change(tensor, index, c));
    return { change, half, switched: Array.from(switched), ...network.derivatives(tensor, index) };
  }),
  kept: given.sparsities.map((sparsity) => Array.from(kept(sparsity)).join("")),
  paths: [1, 0].map((all) => Array.from(paths(new Uint8Array(TOTAL).fill(all)))),
}));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_the_pages_numbers_are_the_packages(content, data):
    state = content.states["trained"]
    sizes = [p.numel() for p in state.model.parameters()]
    generator = torch.Generator().manual_seed(0)
    wanted = [
        (t, int(torch.randint(size, (1,), generator=generator))) for t, size in enumerate(sizes) for _ in range(2)
    ]
    sparsities = [0, 500, 2900, 5000, 9500, 9990]
    given = {**data, **data["states"]["trained"], "wanted": wanted, "sparsities": sparsities}
    done = subprocess.run(
        ["node", "-e", NODE, SOURCES / "network.js"], input=json.dumps(given), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)

    parameters = {name: p.detach() for name, p in state.model.named_parameters()}
    assert made["tensors"] == [[name, list(p.shape)] for name, p in parameters.items()]
    with torch.no_grad():
        loss = float(F.cross_entropy(state.model(content.images), content.labels))
    assert made["loss"] == pytest.approx(loss, rel=1e-6)
    second = snipnb.diagonal_hessian(state.model, content.images, content.labels)
    for (tensor, index), found in zip(wanted, made["found"], strict=True):
        name = list(parameters)[tensor]
        largest, weight = float(state.exact[name].abs().max()), float(parameters[name].flatten()[index])
        half = change_of(content, state, name, index, 0.5)
        assert found["change"] == pytest.approx(float(state.exact[name].flatten()[index]), abs=1e-5 * largest)
        assert found["switched"] == switched_gates(state.model, name, index, content.images)
        assert found["half"] == pytest.approx(half, abs=1e-5 * largest)
        assert found["slope"] == pytest.approx(float(state.snip[name].flatten()[index]), abs=1e-5 * largest)
        assert found["curvature"] == pytest.approx(weight**2 * float(second[name].flatten()[index]), abs=1e-5 * largest)
    for sparsity, kept in zip(sparsities, made["kept"], strict=True):
        number = len(kept) - snipnb.num_removed(len(kept), sparsity / 10000)
        order = flat(state.snip).abs().sort(descending=True, stable=True).indices
        mask = torch.zeros(len(kept), dtype=torch.bool).index_fill_(0, order[:number], True)
        assert kept == "".join("01"[k] for k in mask.int().tolist())
    assert made["paths"][0] == paths_by_gradients()
    assert set(made["paths"][1]) == {0}


@torch.no_grad()
def switched_gates(model, name, index, images):
    """How many gates of each kind let another number pass once a parameter is zero, by PyTorch's own layers."""
    before, parameter = gates(model, images), model.get_parameter(name).view(-1)
    whole = parameter[index].clone()
    parameter[index] = 0
    after = gates(model, images)
    parameter[index] = whole
    return [int(((a != b) & (a >= 0) & (b >= 0)).sum()) for a, b in zip(before, after, strict=True)]


def gates(model, images):
    """Whether each ReLU is open, and which place each max-pool lets pass, or -1 where all four are closed."""
    found, x = [], images
    for layer in (model.conv1, model.conv2):
        z = layer(x)
        x, places = F.max_pool2d(z.relu(), 2, return_indices=True)
        found += [(z > 0).int(), places.where(x > 0, -1)]
    x = x.flatten(1)
    for layer in (model.full1, model.full2):
        found.append((layer(x) > 0).int())
        x = layer(x).relu()
    return found


def paths_by_gradients():
    """Ways from each pixel to an output through all weights: the gradient of a network of ones without gates, whose pooling adds up."""
    model = snipnb.lenet5().double()
    pixels = torch.zeros(1, 1, 28, 28, dtype=torch.float64, requires_grad=True)
    for p in model.parameters():
        torch.nn.init.ones_(p)
    x = F.avg_pool2d(model.conv1(pixels), 2) * 4
    x = F.avg_pool2d(model.conv2(x), 2) * 4
    model.full3(model.full2(model.full1(x.flatten(1)))).sum().backward()
    return pixels.grad.flatten().tolist()
