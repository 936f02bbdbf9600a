"""Shared by all tests: small real images, two threads (one where tests run side by side), no network."""

import os

os.environ["SNIPNB_OFFLINE"] = "1"  # before anything is imported: no test may reach the network
os.environ["SNIPNB_PROGRESS"] = "0"

import matplotlib

matplotlib.use("Agg")

import pytest
import torch

import snipnb

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(scope="session")
def examples():
    """200 real images of the shipped sample, normalised, with labels."""
    images, labels = snipnb.load_mnist("train", sample=True)
    return images[:200], labels[:200]


@pytest.fixture
def few(examples):
    """60 of them, in float64."""
    images, labels = examples
    return images[:60].double(), labels[:60]
