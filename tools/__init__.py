"""What only ``make`` calls: it works on a checkout, and is not installed."""

from pathlib import Path

from snipnb._files import project_root


def checkout() -> Path:
    """The checkout that the package is imported from.

    Raises:
        ValueError: If it is installed elsewhere.
    """
    root = project_root()
    if root is None:
        raise ValueError("this command works on a checkout of the repository; snipnb is installed without one")
    return root
