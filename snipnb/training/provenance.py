"""What made a result: the commit, the machine, and the packages that numbers depend on. They are recorded, but never part of an identity."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from snipnb._files import project_root


@cache
def commit() -> str | None:
    """The commit of the checkout that the package is imported from, with ``+`` if the package has changed since. None outside a checkout."""
    if (root := project_root()) is None:
        return None
    git = partial(subprocess.check_output, cwd=root, stderr=subprocess.DEVNULL, text=True, timeout=30)
    try:
        head = git(["git", "rev-parse", "--short=12", "HEAD"]).strip()
        return head + ("+" if git(["git", "status", "--porcelain", "--", "snipnb"]).strip() else "")
    except (OSError, subprocess.SubprocessError):  # no git, or no repository
        return None


def machine() -> dict[str, Any]:
    """System, cores, processor and memory, as far as the system reports them."""
    facts: dict[str, Any] = {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()}
    facts["processor"] = platform.processor()
    try:
        model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        facts["processor"] = model[0].split(":", 1)[1].strip() if model else facts["processor"]
        facts["memory_gb"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (OSError, ValueError, AttributeError):
        pass
    return facts


def trained_by(device: str) -> dict[str, Any]:
    """What is recorded about a training run: ``commit``, ``torch``, ``numba`` (None if it is missing), ``device``, ``processor``."""
    return {
        "commit": commit(),
        "torch": torch.__version__,
        "numba": metadata.version("numba") if importlib.util.find_spec("numba") else None,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "processor": machine()["processor"],
    }
