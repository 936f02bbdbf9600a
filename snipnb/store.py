"""Results of long runs on disk: finished records and checkpoints of unfinished ones, never lost and never half-written.

Of a key there is at most ``<key>.json`` (its finished record), ``<key>.<progress>.npz`` (its checkpoint) and
``.locks/<key>.lock``. Every file carries a SHA-256 of all it says; one that does not fit is moved aside, never used.
Whoever writes holds the lock of the key; reading needs none.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock, Timeout

from snipnb.paths import write_atomically
from snipnb.progress import note

T = TypeVar("T")
SCHEMA = 1  # what is in the files; the envelope (schema, key, digest) and the rule of the digest stay for ever
_KEY = re.compile(r"[a-z0-9_-][a-z0-9._-]{0,119}")
_CHECKPOINT = re.compile(r"(?P<key>.+)\.(?P<progress>0|[1-9][0-9]{0,17})\.npz")
_DIGEST_LENGTH = 64


class StoreError(RuntimeError):
    """The folder cannot be read or written; what is finished is kept, and running again goes on from there."""


class _OtherSchemaError(Exception):
    """An intact file with another schema number, which is the only argument."""


class Store:
    """A folder of finished records and of checkpoints of unfinished ones, each under a key.

    Definition:
        A key is 1 to 120 of the characters ``a-z0-9._-``, the first no dot. A record is a dict of what JSON can say,
        NaN and infinities included (as the literals ``NaN``, ``Infinity``); floats come back bit for bit, except the
        payload of a NaN; tuples come back as lists. A checkpoint is a dict of numpy arrays and a dict of such facts.

    Args:
        folder: Where the files are; made at the first write.

    Raises:
        ValueError: By every method, if a key is none, or if a newer snipnb wrote what is under it.
        StoreError: By every method, if the folder cannot be read or written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()

    def record(self, key: str) -> dict | None:
        """The finished record of a key, or None; a damaged or older one is moved aside and counts as none."""
        path = self.folder / f"{_checked(key)}.json"
        return _load(path, lambda content: _unpack_record(content, key), "what it held is computed again")

    def finish(self, key: str, record: Mapping) -> None:
        """Keep the record of a finished run and delete its checkpoint; the same record again changes nothing.

        Args:
            key: What the record is of.
            record: The record; equal records give equal bytes.

        Raises:
            ValueError: If the record is not plain JSON, or if another one is there already, which stays.
        """
        path = self.folder / f"{_checked(key)}.json"
        content = _pack_record(key, record)
        stored = self.record(key)
        if stored is None:
            self._write(path, content)
        elif _pack_record(key, stored) != content:
            names = sorted(stored.keys() | record.keys())
            unlike = [n for n in names if n not in stored or n not in record or _json(stored[n]) != _json(record[n])]
            raise ValueError(
                f"{path} holds another record than the one given now; they differ in {', '.join(unlike)}. One key has "
                "one result: find out what is not reproducible, then move the file away"
            )
        self._drop_checkpoints(key)

    def checkpoint(self, key: str) -> tuple[dict[str, np.ndarray], dict] | None:
        """The newest intact checkpoint of a key, the one with the highest progress, as arrays and facts; or None."""
        _checked(key)
        tried: set[int] = set()
        while untried := self._checkpoints()[key].keys() - tried:  # listed anew: another process may save meanwhile
            progress = max(untried)
            tried.add(progress)
            path = self.folder / f"{key}.{progress}.npz"
            loaded = _load(
                path, partial(_unpack_checkpoint, key=key, progress=progress), "what it held is trained again"
            )
            if loaded is not None:
                return loaded
        return None

    def save_checkpoint(self, key: str, arrays: Mapping[str, np.ndarray], facts: Mapping, *, progress: int) -> None:
        """Replace the checkpoint of a key; the previous one is deleted when the new one is completely in place.

        Args:
            key: What the checkpoint is of.
            arrays: Arrays of any shape, of booleans or numbers; dtype, shape and bits are kept.
            facts: What else is needed to go on, as plain JSON.
            progress: How far the run is, an integer from 0 that grows from save to save, e.g. epochs done.

        Raises:
            ValueError: If an array, the facts or the progress cannot be kept.
        """
        if isinstance(progress, bool) or not isinstance(progress, int) or not 0 <= progress < 10**18:
            raise ValueError(f"progress is {progress!r}; accepted are integers from 0 up to 18 digits")
        path = self.folder / f"{_checked(key)}.{progress}.npz"
        self._write(path, _pack_checkpoint(key, arrays, facts, progress))
        self._drop_checkpoints(key, but=progress)

    def progress(self, keys: Iterable[str]) -> dict[str, int]:
        """The progress of each key's checkpoint, 0 if it has none, by one look into the folder; no file is read."""
        found = self._checkpoints()
        return {key: max(found[_checked(key)], default=0) for key in keys}

    @contextmanager
    def lock(self, key: str, *, wait: bool = True) -> Iterator[bool]:
        """Work on a key alone; what killed processes left under it is cleared away first.

        Definition:
            A lock of the operating system on ``.locks/<key>.lock``, free again when its holder ends, however it ends.
            It excludes other processes and other threads, and is not re-entrant. After a wait the key may be finished:
            look for its record once the lock is held.

        Args:
            key: What is worked on.
            wait: Wait, after a note, until whoever holds the lock is done; if False, do not.

        Returns:
            A context manager that gives True if the lock is held inside it, False if somebody else holds it.
        """
        path = self.folder / ".locks" / f"{_checked(key)}.lock"
        lock = FileLock(path, thread_local=False)
        with _os_errors_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):  # rather now than after hours of work
                raise PermissionError(errno.EACCES, f"{self.folder} is read-only")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if wait:
                    note(f"{key}: somebody else is working on it ({path}); waiting until that is done")
                    lock.acquire()
        if not lock.is_locked:
            yield False
            return
        try:
            self._clear_leftovers(key)
            yield True
        finally:
            lock.release()

    # --- files --------------------------------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        with _os_errors_named(self.folder):
            try:
                return os.listdir(self.folder)
            except (FileNotFoundError, NotADirectoryError):
                return []

    def _checkpoints(self) -> defaultdict[str, dict[int, Path]]:
        """By key and progress; the last number before ``.npz`` is the progress, so that no two keys mix."""
        found: defaultdict[str, dict[int, Path]] = defaultdict(dict)
        for name in self._names():
            if match := _CHECKPOINT.fullmatch(name):
                found[match["key"]][int(match["progress"])] = self.folder / name
        return found

    def _write(self, path: Path, content: bytes) -> None:
        with _os_errors_named(path):
            write_atomically(path, content)
            _sync_folder(self.folder)  # the new name is on the disk before an old one is taken away

    def _drop_checkpoints(self, key: str, *, but: int | None = None) -> None:
        for progress, path in self._checkpoints()[key].items():
            if progress != but:
                with _os_errors_named(path):
                    path.unlink(missing_ok=True)

    def _clear_leftovers(self, key: str) -> None:
        """Under the lock: half files of ``write_atomically``, and checkpoints that a finished record outlived."""
        part = re.compile(rf"\.{re.escape(key)}\.(json|[0-9]+\.npz)\.[^.]+\.part")
        for name in filter(part.fullmatch, self._names()):
            with _os_errors_named(self.folder / name):
                (self.folder / name).unlink(missing_ok=True)
        if self._checkpoints()[key] and self.record(key) is not None:
            self._drop_checkpoints(key)


def _checked(key: str) -> str:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ValueError(f"key is {key!r}; accepted are 1 to 120 of the characters a-z 0-9 . _ -, the first not a dot")
    return key


@contextmanager
def _os_errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path}: {error.strerror or error}. Everything finished is kept; mend this and run again, and it goes on"
        ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot, and need not
            raise
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes | None:
    with _os_errors_named(path):  # a file that cannot be read may be good: an error, not a missing record
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None


def _load(path: Path, unpack: Callable[[bytes], T], consequence: str) -> T | None:
    """What ``unpack`` makes of a file; None, after the file was moved aside, if it can make nothing of it."""
    content = _read(path)
    if content is None:
        return None
    try:
        return unpack(content)
    except _OtherSchemaError as error:
        (schema,) = error.args
        if schema > SCHEMA:
            raise ValueError(
                f"{path} has schema {schema}; accepted is {SCHEMA}. A newer snipnb wrote it: update snipnb, or give "
                "another folder"
            ) from None
        suffix, reason = f".schema{schema}", f"has schema {schema}, outdated by {SCHEMA}"
    except (ValueError, LookupError, TypeError, RuntimeError, EOFError, OSError, zipfile.BadZipFile) as error:
        suffix, reason = ".damaged", f"is damaged ({error})"
    note(f"{path} {reason}; {_move_aside(path, content, suffix)}, and {consequence}")
    return None


def _move_aside(path: Path, content: bytes, suffix: str) -> str:
    """Rename a file to the first free ``<name><suffix>``, ``<name><suffix>.2``, ...; say what was done."""
    if _read(path) != content:
        return "somebody else replaced it meanwhile"
    target, number = path.with_name(f"{path.name}{suffix}"), 1
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.name}{suffix}.{number}")
    try:
        os.rename(path, target)
    except OSError as error:
        return f"it cannot be moved aside ({error.strerror})"
    return f"it is now {target.name}"


# --- contents ---------------------------------------------------------------------------------------------------------


def _check_plain(value: object, where: str) -> None:
    """Refuse what JSON would not give back as it was, e.g. keys that are numbers, which would become strings."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise ValueError(f"{where} has the key {name!r}; accepted are strings")
            _check_plain(item, f"{where}[{name!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif value is not None and not isinstance(value, str | int | float):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise ValueError(f"{where} is a {kind}; accepted are dict, list, tuple, str, bool, int, float and None")


def _json(value: object) -> str:
    """The canonical JSON: keys sorted, no spaces, floats as the shortest decimal that gives them back."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def _check_head(head: dict, **expected: object) -> None:
    """Refuse an intact file that is not what its name says."""
    if type(head["schema"]) is not int or head["schema"] < 0:
        raise ValueError(f"its schema is {head['schema']!r}")
    if head["schema"] != SCHEMA:
        raise _OtherSchemaError(head["schema"])
    for name, value in expected.items():
        if head[name] != value:
            raise ValueError(f"its {name} is {head[name]!r}, not {value!r}")


def _pack_record(key: str, record: Mapping) -> bytes:
    """One line, half the size of an indented one; the digest does not depend on layout."""
    content = {"schema": SCHEMA, "key": key, "record": dict(record)}
    _check_plain(content["record"], "record")
    content["digest"] = _digest(_json(content).encode())
    return f"{_json(content)}\n".encode()


def _unpack_record(content: bytes, key: str) -> dict:
    head = json.loads(content)
    if not isinstance(head, dict) or head.keys() != {"schema", "key", "digest", "record"}:
        raise ValueError("it is not a record")
    if head.pop("digest") != _digest(_json(head).encode()):
        raise ValueError("its digest does not fit")
    _check_head(head, key=key)
    if not isinstance(head["record"], dict):
        raise ValueError("it is not a record")
    return head["record"]


def _pack_checkpoint(key: str, arrays: Mapping[str, np.ndarray], facts: Mapping, progress: int) -> bytes:
    """An npz file of the head and the numbered arrays, whose zip comment is the digest of all the bytes before it."""
    head = {"schema": SCHEMA, "key": key, "progress": progress, "names": list(arrays), "facts": dict(facts)}
    _check_plain(dict.fromkeys(arrays), "arrays")
    _check_plain(head["facts"], "facts")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
            kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"array {name!r} is {kind}; accepted are numpy arrays of booleans or numbers")
    members = {"head": np.frombuffer(_json(head).encode(), dtype=np.uint8)}
    members |= {f"array{index}": array for index, array in enumerate(arrays.values())}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in members.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)
    buffer.seek(-2, os.SEEK_END)  # a zip file ends with the length of its comment, two bytes, and the comment
    buffer.write(_DIGEST_LENGTH.to_bytes(2, "little"))
    buffer.write(_digest(buffer.getbuffer()).encode())
    return buffer.getvalue()


def _unpack_checkpoint(content: bytes, key: str, progress: int) -> tuple[dict[str, np.ndarray], dict]:
    if content[-_DIGEST_LENGTH:] != _digest(memoryview(content)[:-_DIGEST_LENGTH]).encode():
        raise ValueError("its digest does not fit")
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        head = json.loads(archive["head"].tobytes())
        _check_head(head, key=key, progress=progress)
        return {name: archive[f"array{index}"] for index, name in enumerate(head["names"])}, head["facts"]
