"""Pins, metadata and the command line: what holds the repository together."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import snipnb
from snipnb import __main__ as cli
from snipnb._files import project_root
from tools import __main__ as calls

ROOT = project_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked():
    lines = [
        line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    return {line.split("==")[0].lower().replace("_", "-"): line.split("==")[1] for line in lines}


def declared():
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *extras["notebooks"], *extras["cluster"], *extras["site"], *extras["test"]]
    return [Requirement(line) for line in lines if line != "snipnb[cluster,site]"]  # which are named by one of them


def test_environment_yml_has_the_pins_of_the_lock():
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, pinned = content["dependencies"]
    assert python == "python=3.11"
    assert pip == "pip"
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert pinned["pip"] == [line for line in lines if not line.startswith("#")] + ["-e ."]


def test_every_declared_package_is_locked_within_its_range():
    pins = locked()
    for requirement in declared():
        assert requirement.specifier.contains(pins[requirement.name.lower()]), requirement
    assert pins["torch"] == "2.13.0"
    assert pins["torchvision"] == "0.28.0"


def test_the_environment_that_make_builds_is_the_locked_one():
    from importlib import metadata

    if not (Path(sys.prefix) / ".snipnb-notebooks,test").is_file():
        pytest.skip("this environment was not built by make env-test")
    pins = locked()
    for requirement in declared():
        installed = Version(metadata.version(requirement.name)).public
        assert installed == pins[requirement.name.lower()], requirement.name


def test_version_stands_in_one_way():
    assert snipnb.__version__ == PROJECT["version"]


def test_public_names_exist_and_have_docstrings():
    assert len(set(snipnb.__all__)) == len(snipnb.__all__)
    for name in snipnb.__all__:
        if callable(getattr(snipnb, name)):
            assert getattr(snipnb, name).__doc__, name


def test_import_does_nothing_and_needs_neither_papermill_nor_jupyter():
    script = (
        "import sys, torch; state = torch.get_rng_state(); import snipnb; "
        "assert torch.equal(torch.get_rng_state(), state); "
        "heavy = {'papermill', 'IPython', 'jupyter_client', 'matplotlib.pyplot', 'torchvision', 'sympy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


WITHOUT_EXAMPLE = {
    "DataUnavailableError",
    "LayerCollapseWarning",
    "Split",
    "Criterion",
}  # the last has one in its module


@pytest.mark.parametrize(
    "name",
    sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in Path(snipnb.__file__).parent.rglob("*.py")
    ),
)
def test_examples_in_docstrings_run(name):
    if not name.endswith("__main__"):
        assert doctest.testmod(importlib.import_module(name.removesuffix(".__init__"))).failed == 0


def test_public_names_have_an_example():
    for name in set(snipnb.__all__) - WITHOUT_EXAMPLE:
        thing = getattr(snipnb, name)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            assert ">>> " in thing.__doc__, name


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (
            calls.main,
            ["figures", "--profile", "quick"],
            "there is no profile 'quick'; the profiles are default, full, smoke",
        ),
        (calls.main, ["figures", "--profile", "smoke", "77"], "there is no notebook '77'"),
        (cli.main, ["run", "01"], "snipnb: notebook 01_salience_derivation trains nothing"),
    ],
)
def test_the_command_line_says_what_is_wrong(main, arguments, message, capsys):
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_missing_data_is_one_readable_message(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SNIPNB_DATA", str(tmp_path))
    assert cli.main(["data"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("snipnb: MNIST is incomplete. Put these files")
    assert str(tmp_path / "MNIST" / "raw") in error
    assert "train-images-idx3-ubyte: missing; needs 47,040,016 bytes" in error


def test_make_alone_prints_help():
    done = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    targets = re.findall(r"^  make ([a-z-]+) ", done.stdout, flags=re.MULTILINE)
    for target in ("env", "data", "figures", "smoke", "test", "lint", "lab", "clean"):
        assert target in targets


def test_nothing_machine_specific_is_in_the_repository():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    texts = [
        f
        for f in files
        if f.endswith((".py", ".md", ".yaml", ".yml", ".toml", ".lock", ".ipynb", ".json", ".csv", ".tex", ".svg"))
    ]
    assert len(texts) > 30
    pattern = re.compile(r"(?<![\w.])/(?:home|root|work|Users)/\w")
    assert not [f for f in texts if f != "tests/test_house.py" and pattern.search((ROOT / f).read_text())]


UNSAFE = {
    "eval",
    "exec",
    "compile",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "torch.load",
    "yaml.unsafe_load",
    "joblib.load",
}


def called(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}, node


def test_nothing_that_runs_what_it_reads():
    for path in sorted(Path(snipnb.__file__).parent.rglob("*.py")):
        for name, options, node in called(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.name}:{node.lineno}: {name}"
            assert name not in UNSAFE, where
            assert options.get("shell", "False") == "False", where
            assert options.get("allow_pickle", "False") == "False", where
            if name == "yaml.load":
                assert ast.unparse(node.args[1]) == "_Loader", where  # a SafeLoader


def test_the_network_is_reached_for_data_alone():
    reaching = re.compile(
        r"^\s*(?:import|from) (urllib\.request|requests|httpx|socket|http\.client|ftplib)", re.MULTILINE
    )
    found = {
        path.name: reaching.findall(path.read_text(encoding="utf-8"))
        for path in Path(snipnb.__file__).parent.rglob("*.py")
    }
    assert {name for name, some in found.items() if some} == {"data.py"}


@pytest.mark.parametrize("path", sorted(Path(snipnb.__file__).parent.rglob("*.py")), ids=lambda path: path.stem)
def test_cross_references_of_docstrings_lead_somewhere(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[-1] == "kernels":
        pytest.importorskip("numba")
    module = importlib.import_module(".".join(part for part in parts if part != "__init__"))
    inside = [module, *(value for value in vars(module).values() if inspect.isclass(value))]
    for target in re.findall(r":(?:func|class|data|meth|mod):`([\w.]+)`", path.read_text(encoding="utf-8")):
        if target.startswith("snipnb"):
            pkgutil.resolve_name(target)
        else:
            first, *rest = target.split(".")
            found = [getattr(one, first) for one in inside if hasattr(one, first)]
            assert found, target
            assert all(hasattr(found[0], name) for name in rest), target
