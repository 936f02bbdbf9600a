"""Where things are: the checkout, the data, what ships in the package, and where a notebook writes."""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path


def project_root() -> Path | None:
    """The checkout this package is imported from, or None when it is installed elsewhere."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() and (root / "notebooks").is_dir() else None


def resource(*parts: str) -> Path:
    """Path of a data file that ships inside the package, e.g. ``resource("claims.yaml")``."""
    return Path(__file__).resolve().parent.joinpath("resources", *parts)


def _given(variable: str) -> Path | None:
    """The folder that an environment variable names, if it is set."""
    if not (text := os.environ.get(variable)):
        return None
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # ~ of an unknown user
        raise ValueError(f"{variable} must be a folder; got {text!r} ({error})") from None


def data_dir() -> Path:
    """Folder that holds ``MNIST/raw``.

    The environment variable ``SNIPNB_DATA`` if set, else ``data/`` of the checkout, else the user's cache folder.
    """
    if (given := _given("SNIPNB_DATA")) is not None:
        return given
    if (root := project_root()) is not None:
        return root / "data"
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(cache) / "snipnb"


def output_dir() -> Path:
    """Folder a notebook writes its figures, tables and verdicts to.

    ``SNIPNB_OUTPUT`` if set (the runner sets it), else ``build/lab`` of the checkout, else ``snipnb-output`` in the
    working directory: a notebook tried out by hand never overwrites the published ``figures/``.
    """
    if (given := _given("SNIPNB_OUTPUT")) is not None:
        return given
    root = project_root()
    return root / "build" / "lab" if root is not None else Path("snipnb-output").resolve()


def runs_dir(profile: str) -> Path:
    """Folder of finished and unfinished training runs.

    ``SNIPNB_RUNS`` if set; else, in a checkout, ``figures/full/runs`` for the profile ``full``, whose runs are kept with the project, and
    ``build/runs`` for all others; else ``runs`` in :func:`output_dir`.
    """
    if (given := _given("SNIPNB_RUNS")) is not None:
        return given
    if (root := project_root()) is None:
        return output_dir() / "runs"
    return root / "figures" / "full" / "runs" if profile == "full" else root / "build" / "runs"


def published_dir(figures: Path, profile: str) -> Path:
    """Where a profile's results are published: ``figures/`` for the default one, ``figures/<name>`` for others, ``build/smoke`` for smoke."""
    if profile == "smoke":
        return figures.parent / "build" / "smoke"
    return figures if profile == "default" else figures / profile


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path`` so that a reader sees the old file or the whole new file, never a part.

    Raises:
        OSError: If it cannot be written; it names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(temporary, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        error.filename = error.filename or os.fspath(path)  # a full disk names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make sure that the new name is on the disk too, before anything that it replaces is removed."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot, and need not
            raise
    finally:
        os.close(descriptor)
