"""What code reaches is never too little, and what it means does not depend on how it is written down."""

import pytest

from snipnb import sources
from snipnb.sources import meaning, reached

FILES = {
    "__init__": "from snipnb.models import lenet\nfrom snipnb.tools import *\n__version__ = '1'\n__all__ = ['lenet']\n",
    "models": "from snipnb import layers\n",
    "layers": "def layer():\n    from .deep import weight\n    return weight\n",
    "deep": "import torch\nfrom importlib import metadata\n",
    "apart": "",
    "tools": "",
    "dynamic": "import importlib\n\ndef load(name):\n    return importlib.import_module(name)\n",
    "broken": "def f(:\n",
}
DEEP = ["__init__", "deep", "layers"]


@pytest.fixture
def package(tmp_path):
    for name, code in FILES.items():
        (tmp_path / f"{name}.py").write_text(code)
    return tmp_path


@pytest.mark.parametrize(
    ("cells", "modules"),
    [
        (["x = 1"], ["__init__"]),
        (["import torch"], ["__init__"]),
        (["import snipnb.layers"], DEEP),
        (["import torch, snipnb.layers as l"], DEEP),
        (["from snipnb.layers import layer"], DEEP),
        (["from snipnb import layers, apart"], ["__init__", "apart", "deep", "layers"]),
        (["from snipnb import lenet"], [*DEEP, "models"]),
        (["import snipnb as s", "print(s.lenet)"], [*DEEP, "models"]),
        (["import snipnb", "def f():\n    return snipnb.layers.layer()"], DEEP),
        (["import snipnb", "print(snipnb.__version__)"], ["__init__"]),
        (["f'{snipnb.apart.x}'"], ["__init__", "apart"]),
        (["model.eval()"], ["__init__"]),
    ],
)
def test_imports_are_followed_at_any_depth(package, cells, modules):
    assert reached(cells, package=package) == modules


@pytest.mark.parametrize(
    "cell",
    [
        "%run other.py",
        "!python other.py",
        "from snipnb import *",
        "from snipnb.apart import *",
        "from snipnb import nothing",
        "from snipnb import dynamic",
        "from snipnb import broken",
        "from .. import apart",
        "import snipnb.nothing",
        "import snipnb\nf(snipnb)",
        "import snipnb as s\ng = getattr(s, 'apart')",
        "import snipnb\nsnipnb.lenet = 1",
        "import snipnb\nsnipnb.nothing",
        "from importlib import import_module",
        "__import__('snipnb')",
        "eval('f()')",
        "from sys import modules\nmodules['snipnb.apart']",
        "load(f'snipnb.{name}')",
        "from snipnb import layers\nlayers.snipnb",
        "get_ipython().run_line_magic('run', 'other.py')",
    ],
)
def test_where_imports_do_not_tell_everything_counts(package, cell):
    assert reached(["x = 1", cell], package=package) == sorted(FILES)


def test_digests_follow_from_names_and_meaning(package):
    before = sources.digest(["layers", "deep"], package=package)
    path = package / "deep.py"
    path.write_text('"""Deep."""\nimport torch  # really\n\nfrom importlib import metadata\n')
    assert sources.digest(["layers", "deep"], package=package) == before
    path.write_text(FILES["deep"] + "x = 1\n")
    assert sources.digest(["layers", "deep"], package=package) != before
    assert sources.digest(["layers"], package=package) != before


def test_of_init_only_what_it_does_itself_counts(package):
    before = sources.digest(["__init__"], package=package)
    path = package / "__init__.py"
    path.write_text("from snipnb.apart import something\n" + FILES["__init__"].replace("'lenet'", "'something'"))
    assert sources.digest(["__init__"], package=package) == before
    path.write_text(FILES["__init__"] + "import torch\n")
    assert sources.digest(["__init__"], package=package) != before


def test_comments_and_docstrings_do_not_change_what_code_means():
    plain = meaning("def f(x):\n    return x + 1\n")
    assert meaning('def f(x):\n    """One more."""\n    return (x +\n  1)  # really\n') == plain
    assert meaning("def f(x):\n    return x + 2\n") != plain
    assert meaning("def f(x):\n    return x - 1\n") != plain
    assert meaning("def f(:") == "def f(:"
