"""Programs for a checkout, nearly all called by ``make``; they are not installed."""

from pathlib import Path

from snipnb._files import project_root


def checkout() -> Path:
    """The checkout that the package is imported from.

    Raises:
        ValueError: If the package is installed without a checkout.
    """
    root = project_root()
    if root is None:
        raise ValueError("this command needs a checkout of the repository; snipnb is installed without one")
    return root
