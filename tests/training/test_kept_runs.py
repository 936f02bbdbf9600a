"""The runs that are kept with the project: found whatever is improved in the code, and not when what they mean has changed."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from snipnb import _files

ROOT = _files.project_root()
pytestmark = pytest.mark.skipif(ROOT is None, reason="needs a checkout")

COUNT = """
import dataclasses, json, sys
sys.path.insert(0, sys.argv[1])
import snipnb
from snipnb.training.runs import RunConfig, run_key
from snipnb.training.store import Store
from snipnb.training.recipe import Recipe
assert snipnb.__file__.startswith(sys.argv[1]), snipnb.__file__
changes = json.loads(sys.argv[3])
kept = Store(sys.argv[2]).runs()
found = 0
for run in kept.values():
    config = RunConfig(**run["config"] | {"recipe": Recipe(**run["config"]["recipe"] | changes)})
    found += run_key(config) in kept
print(len(kept), found)
"""


@pytest.fixture
def package(tmp_path):
    """A copy of the package, and a function that edits a file of it."""
    shutil.copytree(_files.resource().parent, tmp_path / "snipnb", ignore=shutil.ignore_patterns("__pycache__"))

    def edit(name, pattern, new):
        path = tmp_path / "snipnb" / name
        text, number = re.subn(pattern, new, path.read_text(), flags=re.MULTILINE)
        assert number, f"{pattern} is not in {name}"
        path.write_text(text)

    return tmp_path, edit


def found(package, **changes):
    command = [sys.executable, "-c", COUNT, str(package), str(ROOT / "figures/full/runs"), json.dumps(changes)]
    kept, number = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert int(kept) >= 222
    return int(number) / int(kept)


def test_improvements_lose_no_run(package):
    folder, edit = package
    edit("publish/style.py", "#0173b2", "#0173b3")  # SNIP's colour
    edit("publish/style.py", '"SNIP, shuffled within layers"', '"SNIP (shuffled)"')  # a label
    edit("training/scores.py", r'"""Fraction of images whose', '"""The fraction of images whose')  # a docstring
    edit("_engine/ensembles.py", r"\b_convolved\b", "_convolution")  # a private name
    edit("pruning/masks.py", "must be", "has to be")  # error messages
    edit("data.py", r"^MIRROR_TIMEOUT_SECONDS = .*", "MIRROR_TIMEOUT_SECONDS = 77")
    edit(
        "training/runs.py", r"^    sample: bool = False$", "    sample: bool = False\n    augmented: bool = False"
    )  # a field
    edit("training/recipe.py", r"^    decay_every: int = 15$", "    decay_every: int = 15\n    nesterov: bool = False")
    assert found(folder) == 1


def test_another_recipe_is_another_run(package):
    assert found(package[0], learning_rate=0.0013) == 0


def test_other_numerics_are_other_runs(package):
    folder, edit = package
    edit("training/runs.py", r"^NUMERICS = 1$", "NUMERICS = 2")
    assert found(folder) == 0


def test_another_version_of_a_criterion_is_another_run(package):
    folder, edit = package
    edit("pruning/criteria.py", "version=1", "version=2")
    edit("training/runs.py", "version=1", "version=2")
    assert found(folder) == 0
