import errno
import json
import math
import os
import random
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import filelock
import numpy as np
import pytest

from snipnb import store
from snipnb.store import Store, StoreError

RECORD = {
    "config": {"seed": 3, "masked": True, "name": "größer", "nothing": None},
    "history": [0.1, -0.0, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 1 / 3, math.inf, -math.inf],
    "count": 2**70,
    "empty": [{}, [], ""],
}
ARRAYS = {
    "conv1.weight": np.array([[1.5, -0.0], [1e-45, np.inf]], dtype=np.float32),
    "moments": np.array([np.nan, 5e-324, -1 / 3]),
    "step": np.array(7, dtype=np.int64),
    "mask": np.array([True, False, True]),
    "state": np.arange(256, dtype=np.uint8),
    "none": np.zeros((0, 3), dtype=np.float32),
    "": np.arange(6.0).reshape(2, 3).T,
    "big endian": np.arange(3, dtype=">i2"),
}
FACTS = {"epoch": 3, "loss": [0.1, math.inf], "rng": {"state": 2**128 - 1}}

# A child process gets the module without the rest of the package, which would import torch for seconds.
CHILD = """
import os, signal, sys, time, types
package = types.ModuleType("snipnb")
package.__path__ = [sys.argv[1]]
sys.modules["snipnb"] = package
import numpy as np
from snipnb.store import Store, StoreError
store = Store(sys.argv[2])
def tell(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""


def start(script, folder, *arguments):
    command = [sys.executable, "-c", CHILD + script, str(Path(store.__file__).parent), str(folder), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process):
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".locks") if folder.exists() else []


def bits(value):
    return (value.dtype.str, value.shape, value.tobytes())


@pytest.fixture
def notes(monkeypatch):
    said = []
    monkeypatch.setattr(store, "note", said.append)
    return said


@pytest.fixture
def results(tmp_path):
    return Store(tmp_path / "results")


# --- what goes in comes out -------------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was(results):
    results.finish("a", RECORD)
    back = results.record("a")
    assert back == RECORD
    assert [struct.pack("d", x) for x in back["history"]] == [struct.pack("d", x) for x in RECORD["history"]]
    assert {type(v) for v in back["config"].values()} == {int, bool, str, type(None)}
    results.finish("b", {"loss": math.nan})
    assert math.isnan(results.record("b")["loss"])
    assert names(results.folder) == ["a.json", "b.json"]


def test_any_float_comes_back_bit_for_bit(results):
    draw = random.Random(0)
    values = [struct.unpack("d", draw.randbytes(8))[0] for _ in range(3000)]
    values = [value for value in values if not math.isnan(value)]
    results.finish("a", {"values": values})
    assert struct.pack(f"{len(values)}d", *results.record("a")["values"]) == struct.pack(f"{len(values)}d", *values)


def test_the_file_says_what_it_is_and_equal_records_give_equal_bytes(tmp_path):
    one, other = Store(tmp_path / "one"), Store(tmp_path / "other")
    one.finish("a", RECORD)
    other.finish("a", dict(reversed(RECORD.items())))
    content = (one.folder / "a.json").read_text()
    assert content == (other.folder / "a.json").read_text()
    stored = json.loads(content)
    assert stored.keys() == {"schema", "key", "digest", "record"}
    assert (stored["schema"], stored["key"], stored["record"]) == (store.SCHEMA, "a", RECORD)
    indented = json.dumps(stored, sort_keys=True, indent=2)
    assert len(content) < 0.7 * len(indented)
    (one.folder / "a.json").write_text(indented)  # as records were written once
    assert one.record("a") == RECORD
    one.finish("a", RECORD)
    assert one.record("a") == RECORD


def test_a_checkpoint_comes_back_as_it_was(results):
    results.save_checkpoint("a", ARRAYS, FACTS, progress=3)
    arrays, facts = results.checkpoint("a")
    assert list(arrays) == list(ARRAYS)
    assert {name: bits(array) for name, array in arrays.items()} == {name: bits(a) for name, a in ARRAYS.items()}
    assert all(array.flags.writeable for array in arrays.values())
    assert facts == FACTS
    results.save_checkpoint("b", {}, {}, progress=0)
    assert results.checkpoint("b") == ({}, {})


def test_nothing_is_made_before_the_first_write(results):
    assert results.record("a") is None
    assert results.checkpoint("a") is None
    assert results.progress(["a", "b"]) == {"a": 0, "b": 0}
    assert not results.folder.exists()


def test_one_checkpoint_a_key_and_none_when_finished(results):
    for progress in (1, 2, 10, 9):
        results.save_checkpoint("a", {"x": np.full(3, progress)}, {"epoch": progress}, progress=progress)
        assert names(results.folder) == [f"a.{progress}.npz"]
        assert results.checkpoint("a")[1] == {"epoch": progress}
    results.save_checkpoint("a.9", {}, {}, progress=4)  # a key that looks like a checkpoint of another
    assert results.progress(["a", "a.9", "b"]) == {"a": 9, "a.9": 4, "b": 0}
    results.finish("a", RECORD)
    assert names(results.folder) == ["a.9.4.npz", "a.json"]
    results.finish("a.9", RECORD)
    assert names(results.folder) == ["a.9.json", "a.json"]


def test_progress_reads_no_checkpoint(results, monkeypatch):
    results.save_checkpoint("a", ARRAYS, FACTS, progress=12)
    monkeypatch.setattr(store, "_read", lambda path: pytest.fail(f"read {path}"))
    assert results.progress(key for key in "ab") == {"a": 12, "b": 0}


def test_a_second_finish_is_the_same_or_refused(results):
    results.finish("a", {**RECORD, "loss": math.nan})
    before = (results.folder / "a.json").stat()
    results.save_checkpoint("a", ARRAYS, FACTS, progress=1)
    with pytest.raises(ValueError, match=r"a\.json holds another record .* they differ in count, new\. "):
        results.finish("a", {**RECORD, "loss": math.nan, "count": 1, "new": None})
    assert results.record("a")["count"] == 2**70
    assert results.checkpoint("a") is not None
    results.finish("a", {**RECORD, "loss": math.nan})
    assert (results.folder / "a.json").stat().st_mtime_ns == before.st_mtime_ns
    assert (results.folder / "a.json").stat().st_ino == before.st_ino
    assert names(results.folder) == ["a.json"]


@pytest.mark.parametrize("key", ["", ".a", "..", "a/b", "../a", "A", "ä", "a b", "a\n", "a" * 121, "a\0", "١", None, 3])
def test_bad_keys_are_named(results, key):
    def lock():
        with results.lock(key):
            pass

    for use in (
        lambda: results.record(key),
        lambda: results.finish(key, {}),
        lambda: results.checkpoint(key),
        lambda: results.save_checkpoint(key, {}, {}, progress=1),
        lambda: results.progress([key]),
        lock,
    ):
        with pytest.raises(ValueError, match="accepted are 1 to 120 of the characters") as caught:
            use()
        assert repr(key) in str(caught.value)
    assert not results.folder.exists()


@pytest.mark.parametrize("key", ["a", "-", "_", "0", "a.json", "a.1.npz", "a..b", "a" * 120])
def test_good_keys(results, key):
    results.save_checkpoint(key, {}, {}, progress=10**18 - 1)
    assert results.progress([key]) == {key: 10**18 - 1}
    results.finish(key, {"key": key})
    with results.lock(key):
        assert results.record(key) == {"key": key}
    assert names(results.folder) == [f"{key}.json"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"a": [1, np.float32(1)]}, r"record\['a'\]\[1\] is a numpy\.float32; accepted are dict"),
        ({"a": {1: 2}}, r"record\['a'\] has the key 1; accepted are strings"),
        ({"a": np.zeros(1)}, r"record\['a'\] is a numpy\.ndarray"),
        ({"a": b""}, "is a builtins.bytes"),
        ({None: 1}, "record has the key None"),
    ],
)
def test_what_json_cannot_give_back_is_refused(results, record, message):
    with pytest.raises(ValueError, match=message):
        results.finish("a", record)
    with pytest.raises(ValueError, match=message.replace("record", "facts")):
        results.save_checkpoint("a", {}, record, progress=1)
    assert not results.folder.exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"w": np.array([None])}, "array 'w' is object; accepted are numpy arrays of booleans or numbers"),
        ({"w": np.array(["a"])}, "array 'w' is <U1"),
        ({"w": [1.0]}, "array 'w' is list"),
        ({1: np.zeros(1)}, "arrays has the key 1"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(results, arrays, message):
    with pytest.raises(ValueError, match=message):
        results.save_checkpoint("a", arrays, {}, progress=1)
    assert not results.folder.exists()


@pytest.mark.parametrize("progress", [-1, 1.0, True, 10**18, "1", None])
def test_bad_progress_is_named(results, progress):
    with pytest.raises(ValueError, match=r"progress is .*; accepted are integers from 0"):
        results.save_checkpoint("a", {}, {}, progress=progress)


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_record_cut_anywhere_is_never_used(results, notes):
    results.finish("a", {"loss": [0.25, 1.5], "n": 1})
    path = results.folder / "a.json"
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert results.record("a") in (None, {"loss": [0.25, 1.5], "n": 1}), length
        assert path.exists() == (length == len(content) - 1)  # without its last line break it says the same
    assert len(notes) == len(content) - 1
    aside = results.folder / "a.json.damaged"
    assert aside.read_bytes() == b""
    assert [(results.folder / f"a.json.damaged.{n + 1}").read_bytes() for n in (1, 50)] == [content[:1], content[:50]]
    assert f"{path} is damaged (" in notes[0]
    assert "it is now a.json.damaged, and what it held is computed again" in notes[0]
    assert "\n" not in notes[0]


def flips(content):
    """Every single bit, and every byte inverted."""
    for place in range(len(content)):
        for bit in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            yield content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def test_a_record_with_any_flipped_bit_is_none_or_the_same(results, notes):
    record = {"loss": [0.25, -0.0], "big": 1e22, "schema": 1}
    results.finish("a", record)
    path = results.folder / "a.json"
    content = path.read_bytes()
    refused = 0
    for flipped in flips(content):
        path.write_bytes(flipped)
        back = results.record("a")
        if back is None:
            refused += 1
            assert (results.folder / "a.json.damaged").read_bytes() == flipped
            (results.folder / "a.json.damaged").unlink()
        else:
            assert repr(back) == repr(dict(sorted(record.items())))
    assert refused == len(notes) > 8 * len(content)  # what survives is white space and the like


def test_a_checkpoint_with_any_flipped_bit_is_none(results, notes):
    results.save_checkpoint("a", {"w": np.arange(4, dtype=np.float32)}, {"epoch": 1}, progress=1)
    path = results.folder / "a.1.npz"
    for flipped in flips(path.read_bytes()):
        path.write_bytes(flipped)
        assert results.checkpoint("a") is None
        (results.folder / "a.1.npz.damaged").unlink()
    assert "is damaged (its digest does not fit); it is now a.1.npz.damaged, and what it held is trained" in notes[0]


def test_a_checkpoint_cut_or_lengthened_is_none(results, notes):
    results.save_checkpoint("a", ARRAYS, FACTS, progress=1)
    path = results.folder / "a.1.npz"
    content = path.read_bytes()
    lengths = [0, 1, 2, 63, 64, 65, *range(100, len(content), 97), *range(len(content) - 90, len(content))]
    for wrong in [*(content[:length] for length in lengths), content + b"\0", content + content]:
        path.write_bytes(wrong)
        assert results.checkpoint("a") is None
    assert len(list(results.folder.glob("a.1.npz.damaged*"))) == len(lengths) + 2 == len(notes)
    assert results.progress(["a"]) == {"a": 0}
    path.write_bytes(content)
    assert results.checkpoint("a") is not None


def test_a_damaged_checkpoint_falls_back_to_an_older_one(results, notes):
    results.save_checkpoint("a", {}, {"epoch": 1}, progress=1)
    older = (results.folder / "a.1.npz").read_bytes()
    results.save_checkpoint("a", {}, {"epoch": 2}, progress=2)
    (results.folder / "a.1.npz").write_bytes(older)  # as after a crash between the two steps of a save
    assert results.checkpoint("a")[1] == {"epoch": 2}
    (results.folder / "a.2.npz").write_bytes(b"no checkpoint")
    assert results.checkpoint("a")[1] == {"epoch": 1}
    assert names(results.folder) == ["a.1.npz", "a.2.npz.damaged"]
    assert len(notes) == 1


def npz(folder, **arrays):
    np.savez(folder / "foreign.npz", **arrays)
    return (folder / "foreign.npz").read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[1]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schema": 9, "key": "a", "digest": "", "record": {}}',
    ],
)
def test_a_foreign_record_is_none(results, notes, content):
    results.folder.mkdir()
    (results.folder / "a.json").write_bytes(content)
    assert results.record("a") is None
    results.finish("a", RECORD)
    assert results.record("a") == RECORD
    assert (results.folder / "a.json.damaged").read_bytes() == content
    assert len(notes) == 1


def test_a_foreign_checkpoint_is_none(results, notes, tmp_path):
    results.folder.mkdir()
    for content in (b"", b"x" * 64, npz(tmp_path, w=np.zeros(3)), npz(tmp_path, head=np.zeros(3))):
        (results.folder / "a.1.npz").write_bytes(content)
        assert results.checkpoint("a") is None
        sealed = content + store._digest(content).encode()  # even if its digest fits
        (results.folder / "a.1.npz").write_bytes(sealed)
        assert results.checkpoint("a") is None
    assert len(notes) == 8


def test_a_file_under_the_name_of_another_is_none(results, notes):
    results.finish("b", RECORD)
    results.save_checkpoint("c", ARRAYS, FACTS, progress=5)
    shutil.copy(results.folder / "b.json", results.folder / "a.json")
    shutil.copy(results.folder / "c.5.npz", results.folder / "a.5.npz")
    shutil.copy(results.folder / "c.5.npz", results.folder / "c.50.npz")
    assert results.record("a") is None
    assert results.checkpoint("a") is None
    assert results.checkpoint("c") is not None
    assert names(results.folder) == ["a.5.npz.damaged", "a.json.damaged", "b.json", "c.5.npz", "c.50.npz.damaged"]
    assert "is damaged (its key is 'b', not 'a')" in notes[0]
    assert "is damaged (its progress is 5, not 50)" in notes[2]


@pytest.mark.parametrize("unreadable", ["a.json", "a.1.npz"])
def test_what_cannot_be_read_is_an_error_and_stays(results, unreadable):
    (results.folder / unreadable).mkdir(parents=True)
    read = results.record if unreadable == "a.json" else results.checkpoint
    with pytest.raises(StoreError, match=r"Is a directory\. Everything finished is kept"):
        read("a")
    assert names(results.folder) == [unreadable]


def write_with_schema(results, monkeypatch, schema, **record):
    with monkeypatch.context() as patch:
        patch.setattr(store, "SCHEMA", schema)
        results.finish("a", record)
        results.save_checkpoint("a", {"w": np.ones(2)}, record, progress=1)


def test_an_older_schema_is_moved_aside(results, notes, monkeypatch):
    write_with_schema(results, monkeypatch, 0, old=True)
    assert results.record("a") is None
    assert results.checkpoint("a") is None
    assert names(results.folder) == ["a.1.npz.schema0", "a.json.schema0"]
    assert "a.json has schema 0, outdated by 1; it is now a.json.schema0, and what it held is computed" in notes[0]
    write_with_schema(results, monkeypatch, 0, older=True)
    results.finish("a", RECORD)
    assert results.record("a") == RECORD
    assert names(results.folder) == ["a.1.npz.schema0", "a.json", "a.json.schema0", "a.json.schema0.2"]
    assert json.loads((results.folder / "a.json.schema0").read_text())["record"] == {"old": True}


def test_a_newer_schema_is_an_error_and_stays(results, notes, monkeypatch):
    write_with_schema(results, monkeypatch, 12, new=True)
    message = r"has schema 12; accepted is 1\. A newer snipnb wrote it: update snipnb, or give another folder"
    for use in (lambda: results.record("a"), lambda: results.finish("a", RECORD), lambda: results.checkpoint("a")):
        with pytest.raises(ValueError, match=message):
            use()
    assert names(results.folder) == ["a.1.npz", "a.json"]
    assert not notes


@pytest.mark.parametrize("schema", ["1", 1.0, True, None, -1])
def test_a_schema_that_is_no_number_is_damage(results, notes, monkeypatch, schema):
    write_with_schema(results, monkeypatch, schema)
    assert results.record("a") is None
    assert results.checkpoint("a") is None
    assert names(results.folder) == ["a.1.npz.damaged", "a.json.damaged"]


# --- writing fails, or stops anywhere ---------------------------------------------------------------------------------


def test_a_full_disk_costs_nothing(results):
    results.finish("done", RECORD)
    results.save_checkpoint("a", {"w": np.ones(10)}, {"epoch": 1}, progress=1)
    script = """
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for attempt in (
    lambda: store.save_checkpoint("a", {"w": np.zeros(100_000)}, {"epoch": 2}, progress=2),
    lambda: store.save_checkpoint("a", {"w": np.zeros(100_000)}, {"epoch": 1}, progress=1),
    lambda: store.finish("a", {"text": "x" * 20_000}),
):
    try:
        attempt()
    except StoreError as error:
        tell(error)
"""
    messages = finished(start(script, results.folder)).splitlines()
    assert len(messages) == 3
    for message, name in zip(messages, ["a.2.npz", "a.1.npz", "a.json"], strict=True):
        assert message.startswith(f"{results.folder / name}: {os.strerror(errno.EFBIG)}. Everything finished is kept; ")
        assert message.endswith("run again, and it goes on")
    assert names(results.folder) == ["a.1.npz", "done.json"]
    assert results.checkpoint("a")[1] == {"epoch": 1}


@pytest.mark.parametrize("call", ["fsync", "replace", "unlink"])
def test_an_error_of_the_system_is_one_readable_message(results, monkeypatch, call):
    results.save_checkpoint("a", {}, {"epoch": 1}, progress=1)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        for attempt in (
            lambda: results.save_checkpoint("a", {}, {"epoch": 2}, progress=2),
            lambda: results.finish("a", RECORD),
        ):
            with pytest.raises(StoreError, match=r"results/a\.\S+: Permission denied\. Everything finished is kept"):
                attempt()
    if call != "unlink":  # which is what would take a half file away
        assert names(results.folder) == ["a.1.npz"]
        assert results.checkpoint("a")[1] == {"epoch": 1}
    with results.lock("a"):
        results.finish("a", RECORD)
    assert names(results.folder) == ["a.json"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    results = Store(tmp_path / "file" / "results")
    assert results.record("a") is None
    assert results.progress(["a"]) == {"a": 0}

    def lock():
        with results.lock("a"):
            pytest.fail("locked")

    for attempt in (lock, lambda: results.finish("a", {}), lambda: results.save_checkpoint("a", {}, {}, progress=1)):
        with pytest.raises(StoreError, match=r"Not a directory\. Everything finished is kept"):
            attempt()


def test_a_read_only_folder_can_be_read(results, notes):
    results.finish("a", RECORD)
    (results.folder / "b.json").write_text("damaged")
    results.folder.chmod(0o500)
    try:
        if os.access(results.folder, os.W_OK):
            pytest.skip("this user may write anywhere")
        assert results.record("a") == RECORD
        assert results.record("b") is None
        assert "it cannot be moved aside (Permission denied)" in notes[0]
        for attempt in (lambda: results.finish("c", {}), lambda: results.lock("c").__enter__()):
            with pytest.raises(StoreError, match=r"Permission denied\. Everything finished is kept"):
                attempt()
    finally:
        results.folder.chmod(0o700)


def test_what_cannot_be_moved_aside_is_not_used_either(results, notes, monkeypatch):
    results.save_checkpoint("a", {}, {}, progress=1)
    (results.folder / "a.1.npz").write_bytes(b"damaged")

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(store.os, "rename", refuse)
    assert results.checkpoint("a") is None
    assert "it cannot be moved aside (Read-only file system)" in notes[0]


def test_a_good_file_that_came_meanwhile_is_not_moved_aside(results, notes):
    results.finish("a", RECORD)
    assert store._move_aside(results.folder / "a.json", b"damaged", ".damaged") == "somebody else replaced it meanwhile"
    assert results.record("a") == RECORD


def test_a_folder_that_became_read_only_is_said_before_the_work(results, monkeypatch):
    with results.lock("a"):
        results.save_checkpoint("a", {}, {}, progress=1)
    monkeypatch.setattr(store.os, "access", lambda path, mode: False)
    with pytest.raises(StoreError, match=r"results is read-only\. Everything finished is kept"), results.lock("a"):
        pytest.fail("locked")


def test_nothing_is_deleted_before_what_replaces_it_is_on_the_disk(results, monkeypatch):
    results.save_checkpoint("a", {}, {}, progress=1)
    steps = []

    def seen(name, function):
        def call(first, *rest, **options):
            steps.append("sync folder" if name == "sync" and stat.S_ISDIR(os.fstat(first).st_mode) else name)
            return function(first, *rest, **options)

        return call

    for name, function in (("sync", "fsync"), ("rename", "replace"), ("delete", "unlink")):
        monkeypatch.setattr(os, function, seen(name, getattr(os, function)))
    results.save_checkpoint("a", {}, {}, progress=2)
    results.finish("a", RECORD)
    once = ["sync", "rename", "delete", "sync folder", "delete"]  # the first delete is of the temporary name, long gone
    assert steps == once * 2


class Crash(BaseException):
    """Stands for a death at one call of the system."""


@contextmanager
def crash_at(monkeypatch, number):
    """Stop at the number-th call that changes the disk, and let nothing that follows change it either."""
    calls = iter(range(1, 1000))

    def counted(function):
        def call(*arguments, **options):
            if next(calls) >= number:
                raise Crash
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("fsync", "replace", "unlink", "chmod"):
            patch.setattr(os, name, counted(getattr(os, name)))
        yield


def deaths(results, monkeypatch, act):
    """Let ``act`` die at each of its system calls in turn, with a checkpoint before it; yields after each death."""
    for number in range(1, 20):
        shutil.rmtree(results.folder, ignore_errors=True)
        results.save_checkpoint("a", ARRAYS, {"epoch": 1}, progress=1)
        try:
            with crash_at(monkeypatch, number):
                act()
        except Crash:
            yield
        else:
            return


def test_a_death_at_any_step_of_a_save_leaves_a_checkpoint(results, monkeypatch, notes):
    seen = set()
    for _ in deaths(results, monkeypatch, lambda: results.save_checkpoint("a", ARRAYS, {"epoch": 2}, progress=2)):
        seen.add(tuple(name.split(".")[-1] for name in names(results.folder)))
        assert results.checkpoint("a")[1] in ({"epoch": 1}, {"epoch": 2})
        with results.lock("a"):
            results.save_checkpoint("a", ARRAYS, {"epoch": 3}, progress=3)
        assert names(results.folder) == ["a.3.npz"]
    assert seen == {("part", "npz"), ("npz", "npz")}
    assert not notes


def test_a_death_at_any_step_of_a_finish_leaves_record_or_checkpoint(results, monkeypatch, notes):
    seen = set()
    for _ in deaths(results, monkeypatch, lambda: results.finish("a", RECORD)):
        done = results.record("a")
        seen.add(done is not None)
        assert done == RECORD or results.checkpoint("a")[1] == {"epoch": 1}
        with results.lock("a"):
            assert names(results.folder) == (["a.json"] if done else ["a.1.npz"])
    assert seen == {True, False}
    assert not notes


WORK = """
for run in range(int(sys.argv[3])):
    key = f"run-{run}"
    with store.lock(key) as mine:
        if store.record(key) is not None:
            continue
        arrays, facts = store.checkpoint(key) or ({}, {"epoch": 0})
        if facts["epoch"]:
            assert (arrays["w"] == facts["epoch"]).all()
        for epoch in range(facts["epoch"] + 1, 9):
            store.save_checkpoint(key, {"w": np.full(30_000, epoch)}, {"epoch": epoch}, progress=epoch)
            tell(key, epoch)
        store.finish(key, {"run": run, "history": [epoch / 3 for epoch in range(2000)]})
        tell(key, "done")
"""


def test_nothing_reported_is_lost_when_the_process_is_killed(results, notes):
    draw = random.Random(1)
    reached = {}
    leftovers = 0
    for _ in range(15):
        child = start(WORK, results.folder, "100000")
        lines = [child.stdout.readline()]
        time.sleep(draw.uniform(0, 0.15))
        child.kill()
        lines += child.communicate()[0].splitlines()
        for line in lines:
            key, epoch = line.split()
            assert reached.get(key, 0) != "done"
            assert epoch == "done" or int(epoch) > reached.get(key, 0)
            reached[key] = epoch if epoch == "done" else int(epoch)
        leftovers += sum(name.startswith(".") for name in names(results.folder))
        latest = f"run-{len(reached)}"  # may have been begun without a report
        for key, epoch in {latest: 0, **reached}.items():
            record, checkpoint = results.record(key), results.checkpoint(key)
            if epoch == "done":
                assert record["history"] == [n / 3 for n in range(2000)]
            elif record is None and epoch > 0:
                arrays, facts = checkpoint
                assert facts["epoch"] == results.progress([key])[key] >= epoch
                assert (arrays["w"] == facts["epoch"]).all()
        for key in (latest, f"run-{len(reached) - 1}"):
            with results.lock(key, wait=False) as mine:
                assert mine
                parts = [name for name in names(results.folder) if name.startswith(f".{key}.")]
                assert not parts
    finished(start(WORK, results.folder, str(len(reached) + 1)))
    assert names(results.folder) == sorted(f"run-{run}.json" for run in range(len(reached) + 1))
    assert not notes
    assert len(reached) > 2
    print(f"{len(reached)} runs, {leftovers} half files cleared away")


# --- locks ------------------------------------------------------------------------------------------------------------

COUNT = """
from pathlib import Path
for _ in range(40):
    with store.lock("a") as mine:
        assert mine
        count = int(Path(sys.argv[3]).read_text())
        time.sleep(0.002)
        Path(sys.argv[3]).write_text(str(count + 1))
    time.sleep(0.002)
"""


def test_two_processes_exclude_each_other(results, tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    for process in [start(COUNT, results.folder, str(counter)) for _ in range(2)]:
        finished(process)
    assert counter.read_text() == "80"


def test_two_threads_exclude_each_other(results, tmp_path, notes):
    counter = [0]

    def count():
        for _ in range(20):
            with Store(results.folder).lock("a"):
                before = counter[0]
                time.sleep(0.002)
                counter[0] = before + 1
            time.sleep(0.002)

    threads = [threading.Thread(target=count) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter == [40]


def test_a_lock_that_is_taken_is_waited_for_once_said_or_not_waited_for(results, notes):
    held, release, order = threading.Event(), threading.Event(), []

    def hold():
        with results.lock("a"):
            held.set()
            release.wait()
            order.append("released")

    def wait():
        with results.lock("a") as mine:
            order.append(f"taken {mine}")

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    with results.lock("a", wait=False) as mine, results.lock("b", wait=False) as other:
        assert (mine, other) == (False, True)
    assert not notes
    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.3)
    assert order == []
    release.set()
    waiter.join()
    holder.join()
    assert order == ["released", "taken True"]
    assert len(notes) == 1
    assert notes[0].startswith("a: somebody else is working on it (")


def test_a_lock_ends_with_its_process_and_only_then_is_its_half_file_cleared(results):
    script = """
with store.lock("a"):
    open(store.folder / ".a.3.npz.abcd_123.part", "w").close()
    open(store.folder / ".a.json.abcd_123.part", "w").close()
    open(store.folder / ".a.3.json.abcd_123.part", "w").close()  # of the key a.3
    tell("held")
    time.sleep(60)
"""
    child = start(script, results.folder)
    assert child.stdout.readline() == "held\n"
    with results.lock("a", wait=False) as mine:
        assert not mine
        assert len(names(results.folder)) == 3
    child.send_signal(signal.SIGKILL)
    child.communicate()
    with results.lock("a", wait=False) as mine:
        assert mine
        assert names(results.folder) == [".a.3.json.abcd_123.part"]


def test_a_lock_is_released_by_an_error_inside(results, monkeypatch):
    made = []  # keeps the locks alive: one that is forgotten is released with its object
    monkeypatch.setattr(store, "FileLock", lambda *a, **k: made.append(filelock.FileLock(*a, **k)) or made[-1])
    with pytest.raises(OSError, match="of the work"), results.lock("a"):
        raise OSError("of the work")  # which is not the store's
    assert [lock.is_locked for lock in made] == [False]
    with results.lock("a", wait=False) as mine:
        assert mine
