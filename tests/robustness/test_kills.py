"""``make figures`` is killed repeatedly and then allowed to finish. Its files must equal those of an undisturbed run."""

import os

import pytest

from snipnb._files import project_root
from tests.robustness.copies import Copy, differences, leftovers, moments, time_to

KILLS = int(os.environ.get("KILLS", 10))
SEED = int(os.environ.get("SEED", 0))  # draw of the moments


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """An undisturbed copy, with how long it took."""
    copy = Copy(project_root(), tmp_path_factory.mktemp("kills") / "quiet")
    code, copy.seconds = copy.attempt()
    assert code == 0, copy.log.read_text(encoding="utf-8", errors="replace")
    return copy


@pytest.mark.robustness
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL and process groups")
def test_killed_at_random_moments_it_ends_in_the_same_files(quiet, tmp_path, record_property, capsys):
    """Killed at random moments, run again: the same files, nothing left behind, nothing trained twice."""
    killed, timeline = Copy(quiet.folder, tmp_path / "killed"), quiet.timeline(quiet.seconds)
    record_property("times", KILLS)
    try:
        for number, moment in enumerate(moments(KILLS, quiet.seconds, seed=SEED), 1):
            done = killed.done()
            force = done >= {notebook for notebook, _, _ in timeline}  # all is done: do it again
            wait = moment if force else time_to(moment, timeline, done)
            code, seconds = killed.attempt(wait, force=force)
            while code is not None:  # it was done before its kill
                assert code == 0, killed.log.read_text(encoding="utf-8", errors="replace")
                code, seconds = killed.attempt(seconds * moment / timeline[-1][2], force=True)
            kill = killed.what_was_hit(moment, seconds)
            with capsys.disabled():
                print(f"\nkill {number} of {KILLS}, {kill.after:.1f} s into {kill.during}", end="", flush=True)
        code, _ = killed.attempt(10 * quiet.seconds + 60)
        assert code == 0, killed.log.read_text(encoding="utf-8", errors="replace")
    finally:
        still_there = killed.end_orphans()
    assert differences(quiet.published, killed.published) == []
    assert leftovers(killed.folder, quiet.folder) == []
    assert killed.rewritten() == []
    assert still_there == []
