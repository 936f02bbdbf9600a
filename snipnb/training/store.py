"""Results of long runs on disk: finished runs and states of unfinished work, never lost and never half-written.

A *record* is a JSON file of runs that were trained together, each under its own key, and of what trained them. A *state* is a file
of arrays below ``.work/``: a checkpoint, or saliences that several runs share. Every file carries a SHA-256 of its content. A file
that does not match its SHA-256 is moved aside, never used. Writing takes a lock, reading needs none.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock, Timeout

from snipnb._files import write_atomically
from snipnb._progress import note

T = TypeVar("T")
FORMAT = 2  # of records; a record of another format is left in place and not used
WORK = ".work"  # what is not worth keeping once everything is finished
_DIGEST = 64  # characters
_DAMAGE = (ValueError, LookupError, TypeError, RuntimeError, EOFError, OSError, zipfile.BadZipFile)


class StoreError(RuntimeError):
    """The folder cannot be read or written. Finished runs are kept, and running again resumes."""


class Store:
    """A folder of finished runs and of the state of unfinished work.

    Args:
        folder: Where the files are; created at the first write.

    Raises:
        StoreError: From every method, if the folder cannot be read or written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()
        self._read_before: dict[str, tuple[tuple[int, int], dict[str, dict]]] = {}  # file -> (time and size, its runs)

    # --- records ------------------------------------------------------------------------------------------------------

    def runs(self) -> dict[str, dict[str, Any]]:
        """Run key -> run as given to :meth:`finish`, with ``record`` (the file's name) and ``trained_by`` added.

        Files that were read before are not read again. If several files hold a run, the first by name counts.
        """
        names = sorted(name for name in self._names(self.folder) if name.endswith(".json") and not name.startswith("."))
        known: dict[str, tuple[tuple[int, int], dict[str, dict]]] = {}
        for name in names:
            path = self.folder / name
            with _os_errors_named(path), suppress(FileNotFoundError):
                status = path.stat()
                mark = (status.st_mtime_ns, status.st_size)
                before = self._read_before.get(name)
                known[name] = before if before is not None and before[0] == mark else (mark, self._runs_in(path))
        self._read_before = known
        return {key: run for name in reversed(known) for key, run in known[name][1].items()}

    def _runs_in(self, path: Path) -> dict[str, dict]:
        def unpack(content: bytes) -> dict[str, dict]:
            record = _unpack_record(content)
            added = {"record": path.stem, "trained_by": record["trained_by"]}
            return {run["key"]: run | added for run in record["runs"]}

        return _load(path, unpack, "its runs are trained again") or {}

    def finish(self, name: str, runs: Mapping[str, Mapping], trained_by: Mapping) -> None:
        """Keep finished runs and delete the state they came from. A run that is already kept stays as it is.

        States left by a process that was killed between these two steps are deleted as well.

        Args:
            name: Name of the record.
            runs: Run key -> run, as plain JSON. Numbers that are not finite come back as None.
            trained_by: Where the runs come from, as plain JSON.
        """
        path = self.folder / f"{name}.json"
        with self.lock("finish"):
            kept = self.runs()
            new = [{"key": key} | dict(run) for key, run in runs.items() if key not in kept]
            if new:
                self._write(path, _pack_record({"format": FORMAT, "runs": new, "trained_by": dict(trained_by)}))
            records = {file.removesuffix(".json") for file in self._names(self.folder) if file.endswith(".json")}
            states = {
                file.removesuffix(".state") for file in self._names(self.folder / WORK) if file.endswith(".state")
            }
            for finished in {name} | (states & records):
                self.drop(finished)

    # --- states -------------------------------------------------------------------------------------------------------

    def state(self, name: str) -> tuple[dict[str, np.ndarray], dict] | None:
        """The arrays and facts that were last saved under a name, or None."""
        return _load(self._state_path(name), _unpack_state, "what it held is computed again")

    def save_state(self, name: str, arrays: Mapping[str, np.ndarray], facts: Mapping) -> None:
        """Replace the state under a name.

        Args:
            name: Name of the state.
            arrays: Arrays of any shape, of booleans or numbers; dtype, shape and bits are preserved.
            facts: Whatever else is needed to resume, as plain JSON.
        """
        self._write(self._state_path(name), _pack_state(arrays, facts))

    def facts(self, name: str) -> dict | None:
        """The facts of a state without its arrays, or None if no state can be read."""
        try:
            with self._state_path(name).open("rb") as stream:
                stream.seek(_DIGEST)
                with np.load(stream, allow_pickle=False) as archive:
                    return json.loads(archive["arr_0"].tobytes())["facts"]
        except _DAMAGE:
            return None

    def drop(self, name: str) -> None:
        """Delete the state under a name, if there is one."""
        path = self._state_path(name)
        with _os_errors_named(path):
            path.unlink(missing_ok=True)

    def _state_path(self, name: str) -> Path:
        return self.folder / WORK / f"{name}.state"

    # --- locks --------------------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Lock a name for exclusive work; partial files that killed processes left under the name are removed first.

        **Definition.** An operating-system lock on a file below ``.work/``, released when its holder ends, however it ends. It excludes
        other processes and other threads, and is not re-entrant. After a wait the work may already be done: check once the lock is held.

        Args:
            name: What is worked on.
            wait: Print a note and wait until the lock is free; if False, do not wait.

        Returns:
            A context manager that gives True if the lock is held inside it, and False if somebody else holds it.
        """
        path = self.folder / WORK / f"{name}.lock"
        lock = FileLock(path, thread_local=False)
        with _os_errors_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):  # now rather than after hours of work
                raise PermissionError(errno.EACCES, f"{self.folder} is read-only")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if wait:
                    note(f"{name}: another process is working on it ({path}); waiting until it is done")
                    lock.acquire()
        if not lock.is_locked:
            yield False
            return
        try:
            for folder, kind in ((self.folder, "json"), (path.parent, "state")):
                for half in folder.glob(f".{name}.{kind}.*.part"):
                    with _os_errors_named(half):
                        half.unlink(missing_ok=True)
            yield True
        finally:
            lock.release()

    # --- files --------------------------------------------------------------------------------------------------------

    @staticmethod
    def _names(folder: Path) -> list[str]:
        with _os_errors_named(folder), suppress(FileNotFoundError, NotADirectoryError):
            return os.listdir(folder)
        return []

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        with _os_errors_named(path):
            write_atomically(path, content)


@contextmanager
def _os_errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path}: {error.strerror or error}. Everything finished is kept; fix this and run again to resume"
        ) from error


def _load(path: Path, unpack: Callable[[bytes], T], consequence: str) -> T | None:
    """What ``unpack`` makes of a file; None if there is no file, or if it is damaged and was moved aside."""
    with _os_errors_named(path):  # a file that cannot be read may be intact: an error, not a missing record
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
    try:
        return unpack(content)
    except _OtherFormatError as error:
        note(f"{path} {error}; it is left as it is, and {consequence}")
    except _DAMAGE as error:
        note(f"{path} is damaged ({error}); {_move_aside(path, content)}, and {consequence}")
    return None


def _move_aside(path: Path, content: bytes) -> str:
    aside = path.with_name(f"{path.name}.damaged")
    try:
        if path.read_bytes() != content:
            return "another process has replaced it in the meantime"
        os.replace(path, aside)
    except OSError as error:
        return f"it cannot be moved aside ({error.strerror})"
    return f"it is now {aside.name}"


# --- contents ---------------------------------------------------------------------------------------------------------


class _OtherFormatError(Exception):
    """An intact record of another format."""


def _json(value: object) -> str:
    """Canonical JSON: keys sorted, no spaces, floats as the shortest decimal that restores them, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def _pack_record(record: Mapping) -> bytes:
    content = json.loads(json.dumps(record), parse_constant=lambda _: None)  # for numbers that JSON does not have
    return f"{_json(content | {'digest': _digest(_json(content).encode())})}\n".encode()


def _unpack_record(content: bytes) -> dict[str, Any]:
    record = json.loads(content)
    if not isinstance(record, dict):
        raise ValueError("it is not a record")
    written_as = record.get("format", record.get("schema"))
    if isinstance(written_as, int) and written_as != FORMAT:
        raise _OtherFormatError(f"has format {written_as}, not {FORMAT}")
    if record.pop("digest", None) != _digest(_json(record).encode()):
        raise ValueError("its digest does not match")
    return record


def _pack_state(arrays: Mapping[str, np.ndarray], facts: Mapping) -> bytes:
    """The digest, followed by an npz file of the facts and the numbered arrays."""
    head = np.frombuffer(json.dumps({"facts": facts, "names": list(arrays)}).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, head, *arrays.values())
    content = buffer.getvalue()
    return _digest(content).encode() + content


def _unpack_state(content: bytes) -> tuple[dict[str, np.ndarray], dict]:
    if content[:_DIGEST] != _digest(memoryview(content)[_DIGEST:]).encode():
        raise ValueError("its digest does not match")
    with np.load(io.BytesIO(content[_DIGEST:]), allow_pickle=False) as archive:
        head = json.loads(archive["arr_0"].tobytes())
        return {name: archive[f"arr_{k}"] for k, name in enumerate(head["names"], 1)}, head["facts"]
