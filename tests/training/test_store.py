import errno
import json
import math
import os
import random
import shutil
import signal
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

from snipnb.training import store
from snipnb.training.store import Store, StoreError

RUN = {
    "config": {"seed": 3, "masked": True, "name": "größer", "nothing": None},
    "history": [0.1, -0.0, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 1 / 3],
    "count": 2**70,
    "empty": [{}, [], ""],
}
MAKER = {"commit": "abc", "seconds": 1.5}
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
FACTS = {"rows": [{"loss": [0.1, math.inf]}], "rng": {"state": 2**128 - 1}}

# A child process gets the module without the rest of the package, which would import torch for seconds.
CHILD = """
import os, signal, sys, time, types
package = types.ModuleType("snipnb")
package.__path__ = [sys.argv[1]]
sys.modules["snipnb"] = package
import numpy as np
from snipnb.training.store import Store, StoreError
store = Store(sys.argv[2])
def tell(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""


def start(script, folder, *arguments):
    command = [sys.executable, "-c", CHILD + script, str(Path(store.__file__).parents[1]), str(folder), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process):
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output


def names(folder):
    """Of records, states and half files, in a store's folder; locks are not told."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return sorted(path.name for path in found)


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


def test_runs_come_back_as_they_were(results):
    results.finish("a", {"one": RUN, "two": {"loss": [1.0]}}, MAKER)
    back = results.runs()
    assert list(back) == ["one", "two"]
    assert back["one"] == RUN | {"key": "one", "record": "a", "trained_by": MAKER}
    assert [struct.pack("d", x) for x in back["one"]["history"]] == [struct.pack("d", x) for x in RUN["history"]]
    assert {type(v) for v in back["one"]["config"].values()} == {int, bool, str, type(None)}
    assert names(results.folder) == ["a.json"]


def test_records_are_valid_json(results):
    results.finish("a", {"one": {"loss": [math.nan, math.inf, 1.0]}}, MAKER)
    assert results.runs()["one"]["loss"] == [None, None, 1.0]

    def refuse(literal):
        raise AssertionError(f"{literal} is not JSON")

    json.loads((results.folder / "a.json").read_text(), parse_constant=refuse)


def test_equal_runs_give_equal_bytes(results, tmp_path):
    other = Store(tmp_path / "other")
    results.finish("a", {"one": RUN}, MAKER)
    other.finish("a", {"one": dict(reversed(RUN.items()))}, MAKER)
    assert (results.folder / "a.json").read_bytes() == (other.folder / "a.json").read_bytes()


def test_a_state_comes_back_as_it_was(results):
    results.save_state("a", ARRAYS, FACTS)
    arrays, facts = results.state("a")
    assert list(arrays) == list(ARRAYS)
    assert [bits(a) for a in arrays.values()] == [bits(a) for a in ARRAYS.values()]
    assert facts == FACTS == results.facts("a")
    results.save_state("a", {}, {"epoch": 2})
    assert results.state("a") == ({}, {"epoch": 2})
    results.finish("a", {"one": RUN}, MAKER)
    assert results.state("a") is results.facts("a") is None
    results.drop("a")


def test_nothing_is_made_before_the_first_write(results):
    assert results.runs() == {}
    assert results.state("a") is results.facts("a") is None
    results.drop("a")
    assert not results.folder.exists()


def test_a_run_that_is_kept_stays_as_it_is(results):
    results.finish("b", {"one": {"loss": 1}, "two": {"loss": 2}}, MAKER)
    results.finish("a", {"one": {"loss": 3}, "three": {"loss": 4}}, MAKER)
    assert {key: run["loss"] for key, run in results.runs().items()} == {"one": 1, "two": 2, "three": 4}
    assert "one" not in (results.folder / "a.json").read_text()
    results.finish("c", {"one": {"loss": 5}}, MAKER)
    assert not (results.folder / "c.json").exists()


def test_of_a_run_in_several_records_the_first_by_name_counts(results):
    for name, loss in (("b", 2), ("a", 1)):
        Store(results.folder / name).finish(name, {"one": {"loss": loss}}, MAKER)
        shutil.copy(results.folder / name / f"{name}.json", results.folder)
    assert results.runs()["one"]["loss"] == 1


def test_a_record_is_read_once_until_it_changes(results, monkeypatch):
    results.finish("a", {"one": RUN}, MAKER)
    results.runs()
    read = []
    monkeypatch.setattr(store, "_unpack_record", lambda content: read.append(1) or {"trained_by": {}, "runs": []})
    assert "one" in results.runs()
    assert not read
    (results.folder / "a.json").write_text("other")
    assert results.runs() == {}
    (results.folder / "a.json").unlink()
    assert results.runs() == {}
    assert len(read) == 1


# --- damaged and foreign files ----------------------------------------------------------------------------------------


def flips(content):
    """The content with one bit flipped, at some fifty places."""
    for place in range(0, len(content), max(1, len(content) // 50)):
        yield content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]


def test_a_damaged_record_is_moved_aside_and_never_used(results, notes):
    results.finish("a", {"one": RUN}, MAKER)
    path = results.folder / "a.json"
    content = path.read_bytes()
    cuts = [content[:end] for end in range(0, len(content) - 1, 20)]
    for number, bad in enumerate([*cuts, *flips(content.rstrip()), b"[]", b"{}", b"3", b'{"format": "2"}', b"\xff"], 1):
        path.write_bytes(bad)
        assert Store(results.folder).runs() == {}
        assert not path.exists()
        assert path.with_name("a.json.damaged").read_bytes() == bad
        assert len(notes) == number
        assert "is damaged" in notes[-1]
        assert notes[-1].endswith("it is now a.json.damaged, and its runs are trained again")


def test_a_damaged_state_is_moved_aside_and_never_used(results, notes):
    results.save_state("a", ARRAYS, FACTS)
    path = results.folder / ".work" / "a.state"
    content = path.read_bytes()
    cuts = [content[:end] for end in range(0, len(content), 100)]
    for bad in [*cuts, *flips(content), content + b"x"]:
        path.write_bytes(bad)
        results.facts("a")  # a progress bar reads without checks, but never fails
        assert results.state("a") is None
        assert path.with_name("a.state.damaged").read_bytes() == bad


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"runs": []},
        {"trained_by": {}},
        {"trained_by": {}, "runs": 3},
        {"trained_by": {}, "runs": [3]},
        {"trained_by": {}, "runs": [RUN]},
        {"trained_by": {}, "runs": [{"key": []}]},
    ],
)
def test_a_record_that_holds_something_else_is_moved_aside_although_its_digest_matches(results, notes, record):
    results.folder.mkdir()
    path = results.folder / "a.json"
    path.write_bytes(store._pack_record({"format": store.FORMAT} | record))
    assert results.runs() == {}
    assert path.with_name("a.json.damaged").exists()
    assert "is damaged" in notes[-1]


@pytest.mark.parametrize("number", [1, 3])
def test_a_record_of_another_format_is_left_alone(results, notes, number):
    results.folder.mkdir()
    path = results.folder / "a.json"
    name = "schema" if number == 1 else "format"
    path.write_text(json.dumps({name: number, "key": "a", "record": {}, "digest": "x"}))
    before = path.read_bytes()
    assert results.runs() == results.runs() == {}
    assert path.read_bytes() == before
    assert len(notes) == 1
    assert f"has format {number}, not 2; it is left as it is" in notes[0]


def test_a_pickle_is_never_loaded(results, notes):
    results.save_state("a", {}, {})
    path = results.folder / ".work" / "a.state"
    np.savez(results.folder / "evil.npz", arr_0=np.array([{"a": 1}], dtype=object))
    content = (results.folder / "evil.npz").read_bytes()
    path.write_bytes(store._digest(content).encode() + content)
    assert results.state("a") is None
    assert "allow_pickle=False" in notes[0]


def test_a_good_file_that_came_meanwhile_is_not_moved_aside(results, notes):
    results.finish("a", {"one": RUN}, MAKER)
    path = results.folder / "a.json"
    assert store._move_aside(path, b"damaged, as it was read") == "another process has replaced it in the meantime"
    assert path.exists()


def test_what_cannot_be_read_is_an_error_and_stays(results, monkeypatch):
    results.finish("a", {"one": RUN}, MAKER)

    def refuse(self):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(StoreError, match=r"a\.json: Permission denied\. Everything finished is kept"):
        results.runs()
    monkeypatch.undo()
    assert "one" in results.runs()


# --- writing fails, or stops anywhere ---------------------------------------------------------------------------------


def test_a_full_disk_costs_nothing(results):
    results.finish("done", {"one": RUN}, MAKER)
    results.save_state("a", {"w": np.ones(10)}, {"epoch": 1})
    script = """
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for attempt in (
    lambda: store.save_state("a", {"w": np.zeros(100_000)}, {"epoch": 2}),
    lambda: store.finish("a", {"two": {"text": "x" * 20_000}}, {}),
):
    try:
        attempt()
    except StoreError as error:
        tell(error)
"""
    messages = finished(start(script, results.folder)).splitlines()
    assert len(messages) == 2
    for message, path in zip(messages, [results.folder / ".work/a.state", results.folder / "a.json"], strict=True):
        assert message.startswith(f"{path}: {os.strerror(errno.EFBIG)}. Everything finished is kept; ")
        assert message.endswith("run again to resume")
    assert names(results.folder) == ["a.state", "done.json"]
    assert results.state("a")[1] == {"epoch": 1}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_of_the_system_is_one_readable_message(results, monkeypatch, call):
    results.save_state("a", {}, {"epoch": 1})

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        for attempt in (
            lambda: results.save_state("a", {}, {"epoch": 2}),
            lambda: results.finish("a", {"one": RUN}, MAKER),
        ):
            with pytest.raises(StoreError, match=r"a\.\S+: Permission denied\. Everything finished is kept"):
                attempt()
    assert results.state("a")[1] == {"epoch": 1}
    results.finish("a", {"one": RUN}, MAKER)
    assert names(results.folder) == ["a.json"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    results = Store(tmp_path / "file" / "results")
    assert results.runs() == {}
    assert results.state("a") is None

    def lock():
        with results.lock("a"):
            pytest.fail("locked")

    for attempt in (lock, lambda: results.finish("a", {"one": {}}, {}), lambda: results.save_state("a", {}, {})):
        with pytest.raises(StoreError, match=r"Not a directory\. Everything finished is kept"):
            attempt()


def test_a_folder_that_is_read_only_can_be_read_and_is_said_before_the_work(results, monkeypatch):
    results.finish("a", {"one": RUN}, MAKER)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "one" in results.runs()
    with pytest.raises(StoreError, match="results is read-only"), results.lock("b"):
        pytest.fail("worked")


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
    """Let ``act`` die at each of its system calls in turn, with a state before it; yields after each death."""
    for number in range(1, 20):
        shutil.rmtree(results.folder, ignore_errors=True)
        results.save_state("a", ARRAYS, {"epoch": 1})
        try:
            with crash_at(monkeypatch, number):
                act()
        except Crash:
            yield
        else:
            return
    pytest.fail("it never ended")


def test_a_death_at_any_step_of_a_save_leaves_a_state(results, monkeypatch, notes):
    seen = set()
    for _ in deaths(results, monkeypatch, lambda: results.save_state("a", ARRAYS, {"epoch": 2})):
        seen.add(results.state("a")[1]["epoch"])
        with results.lock("a"):
            assert names(results.folder) == ["a.state"]
    assert seen == {1, 2}
    assert not notes


def test_a_death_at_any_step_of_a_finish_leaves_record_or_state(results, monkeypatch, notes):
    seen = set()
    for _ in deaths(results, monkeypatch, lambda: results.finish("a", {"one": RUN}, MAKER)):
        done = "one" in results.runs()
        seen.add(done)
        assert done or results.state("a")[1] == {"epoch": 1}
    assert seen == {True, False}
    assert not notes


def test_the_next_finish_deletes_a_state_whose_record_was_written_before_a_death(results):
    results.finish("a", {"one": RUN}, MAKER)
    for name in ("a", "b", "saliences"):
        results.save_state(name, {}, {})
    results.finish("b", {"two": RUN}, MAKER)
    assert [results.state(name) is None for name in ("a", "b", "saliences")] == [True, True, False]


WORK = """
for number in range(int(sys.argv[3])):
    name = f"run-{number}"
    with store.lock(name):
        if name in store.runs():
            continue
        arrays, facts = store.state(name) or ({}, {"epoch": 0})
        if facts["epoch"]:
            assert (arrays["w"] == facts["epoch"]).all()
        for epoch in range(facts["epoch"] + 1, 9):
            store.save_state(name, {"w": np.full(30_000, epoch)}, {"epoch": epoch})
            tell(name, epoch)
        store.finish(name, {name: {"history": [epoch / 3 for epoch in range(2000)]}}, {})
        tell(name, "done")
"""


def test_nothing_reported_is_lost_when_the_process_is_killed(results, notes):
    draw = random.Random(1)
    reached = {}
    for _ in range(15):
        child = start(WORK, results.folder, "100000")
        lines = [child.stdout.readline()]
        time.sleep(draw.uniform(0, 0.15))
        child.kill()
        lines += child.communicate()[0].splitlines()
        for line in lines:
            name, epoch = line.split()
            assert reached.get(name, 0) != "done"
            assert epoch == "done" or int(epoch) > reached.get(name, 0)
            reached[name] = epoch if epoch == "done" else int(epoch)
        runs = results.runs()
        for name, epoch in reached.items():
            if epoch == "done":
                assert runs[name]["history"] == [n / 3 for n in range(2000)]
            elif name not in runs:
                arrays, facts = results.state(name)
                assert facts["epoch"] >= epoch
                assert (arrays["w"] == facts["epoch"]).all()
    finished(start(WORK, results.folder, str(len(reached) + 1)))
    assert names(results.folder) == sorted(f"run-{number}.json" for number in range(len(reached) + 1))
    assert not notes
    assert len(reached) > 2


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
    assert notes[0].startswith("a: another process is working on it (")


def test_a_lock_ends_with_its_process_and_only_then_are_its_half_files_cleared(results):
    script = """
with store.lock("a"):
    open(store.folder / ".work" / ".a.state.abcd_123.part", "w").close()
    open(store.folder / ".a.json.abcd_123.part", "w").close()
    open(store.folder / ".a.3.json.abcd_123.part", "w").close()  # of a.3
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
