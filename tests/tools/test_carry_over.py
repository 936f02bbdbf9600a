"""Old records keep their numbers under new keys, and one that was made by other code is refused."""

import hashlib
import json
import subprocess
import sys

import pytest

from snipnb import _files
from snipnb.training.runs import run_key
from snipnb.training.store import Store

ROOT = _files.project_root()
pytestmark = pytest.mark.skipif(ROOT is None, reason="needs a checkout")


@pytest.fixture(scope="module")
def tool():
    from tools import carry_over

    return carry_over


def old_record(tool, folder, **changes):
    """A record of two runs as the code of 7193fdb wrote it, under the name it gave."""
    runs = [
        {
            "config": {
                "criterion": criterion,
                "sparsity": 0.9,
                "init_seed": 4,
                "data_seed": 4,
                "model": "lenet5",
                "init": "pytorch",
                "split": "published",
                "sample": False,
                "salience_images": None,
                "recipe": {
                    "epochs": 2,
                    "batch_size": 128,
                    "optimiser": "adam",
                    "learning_rate": 0.0012,
                    "schedule": "step",
                    "weight_decay": 0.0,
                    "momentum": 0.9,
                    "decay": 0.95,
                    "decay_every": 15,
                },
            },
            "kept": 6171,
            "collapsed": [],
            "history": {
                "epoch": [1, 2],
                "test_error": [0.1, 1 / 3],
                "train_loss": [2.0, 0.1],
                "validation_error": [float("nan")] * 2,
            },
        }
        for criterion in ("random", "snip")
    ]
    key = tool.old_name([run["config"] for run in runs])
    for run in runs:
        run["history"].update(changes)
    content = {"schema": 1, "key": key, "record": {"runs": runs}}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    path = folder / f"{key}.json"
    (folder / "facts").mkdir(exist_ok=True)
    path.write_text(json.dumps(content | {"digest": hashlib.sha256(text.encode()).hexdigest()}))
    facts = {"seconds": 10.0, "epochs": 2, "networks": 2, "device": "cpu", "torch": "2.13.0+cpu"}
    (folder / "facts" / path.name).write_text(json.dumps(facts))
    return path, runs


def test_numbers_stay_and_keys_are_todays(tool, tmp_path):
    path, runs = old_record(tool, tmp_path)
    into = Store(tmp_path / "new")
    assert tool.carry_over(path, into) == 2
    kept = into.runs()
    for run in runs:
        config = tool.RunConfig(**run["config"] | {"recipe": tool.Recipe(**run["config"]["recipe"])})
        found = kept[run_key(config)]
        assert found["history"]["test_error"] == [0.1, 1 / 3]
        assert found["history"]["validation_error"] == [None, None]
        assert (found["kept"], found["config"]) == (6171, run["config"])
        assert found["trained_by"]["commit"] == "7193fdb"
        assert found["trained_by"]["old_key"] == path.stem


def test_a_run_that_is_kept_already_stays(tool, tmp_path):
    path, runs = old_record(tool, tmp_path)
    into = Store(tmp_path / "new")
    config = tool.RunConfig(**runs[0]["config"] | {"recipe": tool.Recipe(**runs[0]["config"]["recipe"])})
    into.finish("first", {run_key(config): {"kept": 1}}, {"commit": "another"})
    assert tool.carry_over(path, into) == 1
    assert into.runs()[run_key(config)]["kept"] == 1


def test_what_other_code_made_is_refused(tool, tmp_path, monkeypatch):
    path, _ = old_record(tool, tmp_path)
    monkeypatch.setattr(tool, "SOURCES", "0" * 64)
    with pytest.raises(ValueError, match="was made by other code: under the sources of 7193fdb it would be lenet5-pub"):
        tool.carry_over(path, Store(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_what_is_damaged_is_refused(tool, tmp_path):
    path, _ = old_record(tool, tmp_path)
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(ValueError, match="damaged or renamed"):
        tool.carry_over(path, Store(tmp_path / "new"))
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "carry_over.py", tmp_path, "--into", tmp_path / "new"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("refused: ")


def test_kept_runs_have_the_identity_that_they_are_found_under():
    """Whoever changes what identities are loses every run that is kept with the project."""
    kept = Store(ROOT / "figures" / "full" / "runs").runs()
    assert len(kept) >= 222
    sys.path.insert(0, str(ROOT / "tools"))
    from tools.verify_runs import config_of

    for key, run in kept.items():
        assert run_key(config_of(run)) == key
