import json

import pytest

from snipnb._files import project_root
from snipnb.publish import profiles
from tools import runner

ROOT = project_root()
NOTEBOOKS = runner.find_notebooks(ROOT)


def write_notebook(folder, source, tags=("parameters",)):
    path = folder / "01_x.ipynb"
    cell = {"cell_type": "code", "metadata": {"tags": list(tags)}, "source": source.splitlines(keepends=True)}
    path.write_text(json.dumps({"cells": [cell]}))
    return path


def write_profile(folder, text):
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", profiles.available_profiles())
def test_shipped_profiles_set_every_parameter_of_every_notebook(name):
    profile = profiles.load_profile(name)
    profiles.check_parameters(profile, NOTEBOOKS)
    for path in NOTEBOOKS:
        assert profile.parameters(path.stem).keys() == profiles.declared_parameters(path).keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opened_by_hand_has_the_default_profile(path):
    assert profiles.declared_parameters(path) == profiles.load_profile("default").parameters(path.stem)


def test_unknown_profile_is_named():
    with pytest.raises(ValueError, match="no profile 'quick'; the profiles are default, full, smoke, or give a"):
        profiles.load_profile("quick")
    with pytest.raises(ValueError, match=r"no profile '/nowhere/x\.yaml'"):
        profiles.load_profile("/nowhere/x.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("notebooks: [", "is not valid YAML"),
        (f"notebooks: {'[' * 3000}{']' * 3000}", "is not valid YAML: maximum recursion depth"),
        ("notebooks: {}\nabout: !!int ''", "is not valid YAML"),
        ("notebooks: {}\nabout: !!timestamp never", "is not valid YAML"),
        ("notebooks: {}\nabout: 2026-13-45", "is not valid YAML: month must be in"),
        ("- 1", "has list; the accepted sections are about, common, notebooks"),
        ("common: {}", "the accepted sections are"),
        ("notebooks: {}\nnotebook: {}", "the accepted sections are"),
        ("notebooks: {01_x: 3}", "section '01_x' .* must be a mapping name: value; got 3"),
        ("notebooks: {}\ncommon: 3", "section 'common' .* must be a mapping name: value; got 3"),
        ("notebooks: []", "section 'notebooks' .* must be a mapping name: value; got \\[\\]"),
        ("notebooks: {01_x: {epochs: 1, epochs: 2}}", "epochs is given twice"),
        ("notebooks: {}\nnotebooks: {}", "notebooks is given twice"),
        ("notebooks: {01_x: {profile: default}}", "sets 'profile', which is always the file's name"),
        ("notebooks: {}\ncommon: !!python/object/apply:os.system ['echo']", "is not valid YAML"),
    ],
)
def test_malformed_profiles_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        profiles.load_profile(write_profile(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("notebooks: {09_y: {}}", r"has sections \['09_y'\]; the notebooks are \['01_x'\]"),
        (
            "notebooks: {01_x: {epoch: 3}}",
            r"sets \['epoch'\] for 01_x; its parameters are epochs, profile, rate, sample, seeds, threads",
        ),
        ("common: {thread: 3}\nnotebooks: {}", r"sets \['thread'\] for 01_x"),
        ("notebooks: {01_x: {epochs: '3'}}", "sets epochs = '3' for 01_x; it must be an integer, such as 3"),
        ("notebooks: {01_x: {epochs: true}}", "it must be an integer"),
        ("notebooks: {01_x: {epochs: 2.5}}", "it must be an integer"),
        ("notebooks: {01_x: {rate: 1e-3}}", r"sets rate = '1e-3' .* YAML reads 1e-3 as text and 1\.0e-3 as a number"),
        ("notebooks: {01_x: {seeds: [1, x]}}", "it must be a list"),
        ("notebooks: {01_x: {epochs: null}}", "it must be an integer"),
        ("notebooks: {01_x: {rate: .nan}}", "it must be a number"),
        ("common: {threads: 0}\nnotebooks: {}", "threads = 0; it must be from 1 to 1024"),
    ],
)
def test_unknown_parameters_and_wrong_types_are_errors(tmp_path, text, message):
    path = write_notebook(
        tmp_path, 'profile = "default"\nthreads = 2\nsample = False\nepochs = 3  # passes\nrate = 0.1\nseeds = [0, 1]\n'
    )
    with pytest.raises(ValueError, match=message):
        profiles.check_parameters(profiles.load_profile(write_profile(tmp_path, text)), [path])


def test_good_values_pass(tmp_path):
    path = write_notebook(
        tmp_path, 'profile = "default"\nthreads = 2\nsample = False\nepochs = 3\nrate = 0.1\nseeds = [0, 1]\n'
    )
    profile = profiles.load_profile(write_profile(tmp_path, "notebooks: {01_x: {epochs: 4, rate: 1, seeds: []}}"))
    profiles.check_parameters(profile, [path])
    assert profile.parameters("01_x") == {"profile": "mine", "epochs": 4, "rate": 1, "seeds": []}


@pytest.mark.parametrize("name", ["default.yaml", "full.yaml", "notebooks.yaml", "...yaml", ".hidden.yaml", "a b.yaml"])
def test_a_profile_of_ones_own_cannot_pass_for_another(tmp_path, name):
    (tmp_path / name).write_text("notebooks: {}")
    with pytest.raises(ValueError, match="a profile file cannot be called"):
        profiles.load_profile(str(tmp_path / name))
    with pytest.raises(ValueError, match="no profile"):
        profiles.load_profile("../profiles/default")


@pytest.mark.parametrize(
    "source", ["epochs = 2 + 3", "import os", "epochs = range(3)", "a, b = 1, 2", "print(3)", "x = {1}", "x = {[]: 1}"]
)
def test_parameters_are_literals(tmp_path, source):
    with pytest.raises(ValueError, match="is not 'name = literal'"):
        profiles.declared_parameters(write_notebook(tmp_path, source))


def test_there_is_one_parameters_cell(tmp_path):
    with pytest.raises(ValueError, match="has 0 cells tagged 'parameters'"):
        profiles.declared_parameters(write_notebook(tmp_path, "epochs = 2", tags=[]))


def test_a_broken_notebook_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"01_x\.ipynb: the parameters cell is not valid Python"):
        profiles.declared_parameters(write_notebook(tmp_path, "epochs = "))
    with pytest.raises(ValueError, match=r"01_x\.ipynb has no parameters \['threads', 'sample'\]"):
        profiles.declared_parameters(write_notebook(tmp_path, "profile = 'x'"))
    for text in ("{ half", "[]", '{"cells": 3}'):
        (tmp_path / "02_y.ipynb").write_text(text)
        with pytest.raises(ValueError, match=r"02_y\.ipynb is not a notebook"):
            profiles.declared_parameters(tmp_path / "02_y.ipynb")
