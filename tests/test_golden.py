"""The numbers that ``NUMERICS`` stands for have not moved: masks, losses, error counts and weights, with and without Numba."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from golden import numerics

GOLDEN = json.loads((numerics.FOLDER / "numerics_1.json").read_text())
SIZES = {"lenet5": 61_706, "lenet_300_100": 266_610}


@pytest.fixture(scope="module", params=["with Numba", "without Numba"])
def measured(request):
    if request.param == "with Numba":
        pytest.importorskip("numba")
    command = [sys.executable, numerics.__file__, "--print"]
    command += ["--without-numba"] if request.param == "without Numba" else []
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def moved(now, then, network):
    """How many parameters two masks keep that the other does not, and how many are kept."""
    now, then = (numerics.unpacked(text, SIZES[network]) for text in (now, then))
    return max(int((now & ~then).sum()), int((then & ~now).sum())), int(then.sum())


def test_masks_have_not_moved(measured):
    assert measured["masks"].keys() == GOLDEN["masks"].keys()
    for name, then in GOLDEN["masks"].items():
        differing, kept = moved(measured["masks"][name], then, name.split()[0])
        assert differing <= max(1, kept // 10_000), f"{name}: {differing} of {kept:,} kept parameters are others"


def test_trainings_have_not_moved(measured):
    assert measured["trainings"].keys() == GOLDEN["trainings"].keys()
    for training, networks in GOLDEN["trainings"].items():
        for network, then in networks.items():
            now = measured["trainings"][training][network]
            np.testing.assert_allclose(now["losses"], then["losses"], rtol=1e-5, err_msg=f"{training}: {network}")
            assert max(abs(a - b) for a, b in zip(now["wrong"], then["wrong"], strict=True)) <= 1
            assert now["norms"].keys() == then["norms"].keys()
            for name, norm in then["norms"].items():
                assert now["norms"][name] == pytest.approx(norm, rel=1e-4, abs=1e-6), f"{training}: {network} {name}"


def test_golden_masks_say_what_is_kept():
    for name, text in GOLDEN["masks"].items():
        network, _, sparsity = name.split()
        kept = numerics.unpacked(text, SIZES[network])
        assert len(kept) == SIZES[network]
        assert kept.sum() == SIZES[network] - int(SIZES[network] * float(sparsity))


def test_golden_numbers_would_notice():
    """The masks of two criteria, and the losses of two recipes, are further apart than what is allowed."""
    differing, kept = moved(GOLDEN["masks"]["lenet5 snip 0.95"], GOLDEN["masks"]["lenet5 exact 0.95"], "lenet5")
    assert differing > 10 * max(1, kept // 10_000)
    one, other = (
        np.array(GOLDEN["trainings"][f"lenet5, {name}"]["snip 0.95"]["losses"])
        for name in ("Adam, one-cycle", "Adam, steps")
    )
    assert np.abs(one / other - 1).max() > 1e-3
    assert torch.isfinite(torch.tensor(one)).all()
