"""SNIP network pruning, reproduced: saliences, masks and the training of masked networks.

The public names are listed in ``__all__``. They are imported when the first of them is used, so that parts of the package
can be used without PyTorch. Importing the package computes, loads and seeds nothing.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from snipnb._public import *

__version__ = "0.1.0"


def __getattr__(name: str) -> _Any:
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module 'snipnb' has no attribute {name!r}")
    from snipnb import _public

    public = [key for key in vars(_public) if not key.startswith("_")]
    if name == "__all__":
        return sorted(public, key=lambda key: (not key.isupper(), key))
    if name not in public:
        raise AttributeError(
            f"module 'snipnb' has no attribute {name!r}; its public names are {', '.join(__getattr__('__all__'))}"
        )
    return getattr(_public, name)


def __dir__() -> list[str]:
    return [*__getattr__("__all__"), "__version__"]
