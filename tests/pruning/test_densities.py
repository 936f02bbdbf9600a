import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import snipnb
from snipnb.pruning import criteria, densities
from snipnb.pruning.closed_form import FITTED, Constants
from snipnb.studies.seed_consistency import prediction


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Passes over a few hundred images are too short to share among threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images():
    images, labels = snipnb.load_mnist("train", sample=True)
    return images[:600], labels[:600]


@pytest.fixture(scope="module")
def fitting(images):
    return prediction.measure_densities(*images)


def kept_by(model, found):
    return sum(found[name] * p.numel() for name, p in model.named_parameters())


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", densities.rules())
@pytest.mark.parametrize("network", [snipnb.lenet5, snipnb.lenet_300_100])
def test_every_rule_keeps_the_exact_number_and_less_of_each_layer_as_sparsity_rises(rule, network):
    model, previous = network(), None
    total = sum(p.numel() for p in model.parameters())
    for sparsity in (0, 0.5, 0.9, 0.95, 0.99):
        found = densities.rules()[rule](model, sparsity, "pytorch")
        assert list(found) == [name for name, _ in model.named_parameters()]
        assert all(0 <= d <= 1 for d in found.values())
        assert kept_by(model, found) == pytest.approx(total - snipnb.num_removed(total, sparsity), rel=1e-9)
        assert previous is None or all(found[name] <= previous[name] + 1e-12 for name in found)
        previous = found


def test_erdos_renyi_kernel_by_hand():
    model = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Linear(4, 2, bias=False))  # ratios 12/32 and 6/8
    assert densities.erdos_renyi_kernel_densities(model, 0.7) == pytest.approx({"0.weight": 0.25, "1.weight": 0.5})
    # at 26 kept the factor is 26/18, so the second is capped at its 8 and the first gets the other 18 of 32
    assert densities.erdos_renyi_kernel_densities(model, 0.35) == pytest.approx({"0.weight": 18 / 32, "1.weight": 1.0})
    kernel = densities.erdos_renyi_kernel_densities(nn.Sequential(nn.Conv2d(3, 4, 5), nn.Linear(10, 10)), 0.9)
    assert kernel["0.weight"] / kernel["1.weight"] == pytest.approx((17 / 300) / (20 / 100))


def test_a_single_number_has_the_ratio_one():
    model = nn.Linear(10, 10, bias=False)
    model.scale = nn.Parameter(torch.tensor(1.0))
    # ratios 20/100 and 1: at 11 kept of 101 the factor is 11 / (20 + 1)
    found = densities.erdos_renyi_kernel_densities(model, 0.9)
    assert found == pytest.approx({"weight": 2.2 / 21, "scale": 11 / 21})


def test_biases_of_erdos_renyi_kernel_are_whole():
    assert densities.erdos_renyi_kernel_densities(snipnb.lenet5(), 0.95)["full1.bias"] == 1


def test_densities_belong_to_shapes_not_to_places():
    ahead = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    behind = nn.Sequential(nn.Linear(4, 2), nn.Linear(8, 4))
    for rule in (densities.uniform_densities, densities.erdos_renyi_kernel_densities):
        a, b = rule(ahead, 0.6), rule(behind, 0.6)
        assert [b[f"{1 - int(name[0])}{name[1:]}"] for name in a] == pytest.approx(list(a.values()))


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0, 0.5, 0.95, 0.99])
@pytest.mark.parametrize("rule", densities.rules())
def test_masks_have_the_exact_count(rule, sparsity):
    model = snipnb.lenet5()
    found = densities.rules()[rule](model, sparsity, "xavier_normal")
    mask = densities.mask_of_densities(model, found, seed=1)
    assert snipnb.num_kept(mask) == 61_706 - snipnb.num_removed(61_706, sparsity)
    assert all(abs(float(m.sum()) - found[name] * m.numel()) < 1 for name, m in mask.items())


def test_largest_remainders_by_hand():
    model = nn.Sequential(nn.Linear(5, 2), nn.Linear(2, 2))  # sizes 10 2 4 2
    quotas = {"0.weight": 0.57, "0.bias": 0.4, "1.weight": 0.65, "1.bias": 0.5}  # 5.7 0.8 2.6 1.0: 10.1 in all
    mask = densities.mask_of_densities(model, quotas)
    assert [int(m.sum()) for m in mask.values()] == [6, 1, 2, 1]
    mask = densities.mask_of_densities(model, quotas, num_kept=9)
    assert [int(m.sum()) for m in mask.values()] == [5, 1, 2, 1]
    with pytest.raises(ValueError, match=r"num_kept must be from 8 to 11, .*; got 12"):
        densities.mask_of_densities(model, quotas, num_kept=12)


def test_what_is_kept_by_default_is_the_sum_rounded_and_the_first_draw():
    model = nn.Linear(10, 2)  # 20 and 2
    quotas = {"weight": 0.33, "bias": 0.45}  # 6.6 and 0.9: 7.5 in all, to the even 8
    mask = densities.mask_of_densities(model, quotas)
    assert {name: int(m.sum()) for name, m in mask.items()} == {"weight": 7, "bias": 1}
    first = densities.mask_of_densities(model, quotas, num_kept=8, seed=0)
    assert all(torch.equal(mask[name], first[name]) for name in mask)
    fewer = densities.mask_of_densities(model, quotas, num_kept=7)  # the larger remainder first
    assert {name: int(m.sum()) for name, m in fewer.items()} == {"weight": 6, "bias": 1}


def test_a_mask_is_shuffled_within_its_layers(examples):
    model = snipnb.lenet5(seed=1)
    mask = snipnb.keep_mask(snipnb.snip(model, *examples), 0.9)
    shuffled = densities.mask_of_densities(model, densities.densities_of(mask), seed=4)
    assert [int(m.sum()) for m in shuffled.values()] == [int(m.sum()) for m in mask.values()]
    assert not torch.equal(shuffled["full1.weight"], mask["full1.weight"])
    again, other = (densities.mask_of_densities(model, densities.densities_of(mask), seed=s) for s in (4, 5))
    assert all(torch.equal(again[name], shuffled[name]) for name in mask)
    assert not torch.equal(other["full1.weight"], shuffled["full1.weight"])
    hits = int((shuffled["full1.weight"] & other["full1.weight"]).sum())
    share = densities.densities_of(mask)["full1.weight"]
    assert hits == pytest.approx(48_000 * share**2, abs=6 * 48_000**0.5 * share)  # as of independent draws


def test_proportional_densities_are_capped_and_exact():
    found = densities.proportional_densities({"a": 10, "b": 100, "c": 10}, {"a": 8.0, "b": 1.0, "c": 0.0}, 60)
    assert found == pytest.approx({"a": 1.0, "b": 0.5, "c": 0.0})


def test_perturbed_densities_keep_as_many(examples):
    model, sizes = snipnb.lenet5(seed=3), {name: p.numel() for name, p in snipnb.lenet5().named_parameters()}
    start = snipnb.Start(model, *examples, seed=3, draw=lambda seed: snipnb.lenet5(seed=seed))
    salience = criteria.salience_for("perturbed_1", start)
    plain, *perturbed = (
        criteria.mask_for(name, start, salience, 0.95) for name in ("snip_densities", *criteria.PERTURBED)
    )
    assert [sum(int(m.sum()) for m in mask.values()) for mask in (plain, *perturbed)] == [3086] * 7
    before, *after = (densities.densities_of(mask) for mask in (plain, *perturbed))
    assert after[0] != after[1]
    large = [name for name, size in sizes.items() if size > 1000]
    factors = np.array([[one[name] / before[name] for name in large] for one in after])
    assert (factors > 0).all()
    spread = factors.max(1) / factors.min(1)  # all by 2^u, then by one number
    assert ((spread > 1.1) & (spread < 4.5)).all()
    assert spread.max() > 2.2  # u has both signs
    again = criteria.mask_for("perturbed_1", start, salience, 0.95)
    assert all(torch.equal(again[name], perturbed[0][name]) for name in again)
    other = criteria.mask_for("perturbed_1", dataclasses.replace(start, seed=4), salience, 0.95)
    assert densities.densities_of(other) != after[0]


def test_masks_of_a_seed_nest_and_the_random_state_stays():
    model, state = snipnb.lenet5(), torch.get_rng_state()
    dense, sparse = (
        densities.mask_of_densities(model, densities.uniform_densities(model, s), seed=2) for s in (0.5, 0.9)
    )
    assert all(bool((dense[name] | ~sparse[name]).all()) for name in dense)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_mask_that_cuts_the_network_is_a_warning():
    model = snipnb.lenet5()
    whole = {**dict.fromkeys(densities.uniform_densities(model, 0), 1.0), "full2.weight": 0.0}
    with pytest.warns(snipnb.LayerCollapseWarning, match=r"nothing is left of full2\.weight:"):
        densities.mask_of_densities(model, whole)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"full4.bias": 1.0}, {}, r"\['full4.bias'\] only in the densities, \[\] only in the model"),
        ({"full3.bias": 1.1}, {}, r"density of 'full3.bias' must be a number in \[0, 1\]; got 1\.1"),
        ({"full3.bias": float("nan")}, {}, "density of 'full3.bias' .*; got nan"),
        ({}, {"seed": 1.0}, r"seed must be an integer; got 1\.0"),
        ({}, {"num_kept": 100.0}, r"num_kept must be an integer; got 100\.0"),
    ],
)
def test_densities_that_make_no_mask_are_named(change, arguments, message):
    model = snipnb.lenet5()
    with pytest.raises(ValueError, match=message):
        densities.mask_of_densities(model, densities.uniform_densities(model, 0.5) | change, **arguments)


# --- against SNIP -----------------------------------------------------------------------------------------------------


def test_measured_densities_are_those_of_masks(images, fitting):
    masks = [snipnb.keep_mask(snipnb.snip(snipnb.lenet5(seed=s), *images), 0.95) for s in range(5)]
    own = fitting[(fitting["network"] == "LeNet-5") & (fitting["init"] == "pytorch") & (fitting["sparsity"] == 0.95)]
    kept = np.array([[int(m.sum()) / m.numel() for m in mask.values()] for mask in masks])
    assert own["layer"].tolist() == list(masks[0])
    assert own["density"].tolist() == pytest.approx(kept.mean(axis=0))
    assert own["deviation"].tolist() == pytest.approx(kept.std(axis=0, ddof=1))


def test_the_constants_come_from_saliences(fitting):
    found = prediction.fit_constants(fitting)
    assert found.between / found.within == pytest.approx(FITTED.between / FITTED.within, abs=0.08)
    assert found.within == pytest.approx(FITTED.within, abs=0.1)
    assert found.neighbours == pytest.approx(FITTED.neighbours, abs=0.25)
    assert found.contrast == pytest.approx(FITTED.contrast, abs=0.1)
    for sparsity in (0.5, 0.95):  # and it matters little which of the two
        one, other = (
            densities.predicted_densities(snipnb.lenet5(), sparsity, constants=constants)
            for constants in (found, FITTED)
        )
        sizes = {name: p.numel() for name, p in snipnb.lenet5().named_parameters()}
        moved = sum(abs(one[name] - other[name]) * size for name, size in sizes.items()) / 2
        assert moved < 0.02 * kept_by(snipnb.lenet5(), other)


def test_the_fit_finds_constants_again():
    true = Constants(0.55, 0.35, 0.4, 0.9)
    rows = []
    for name, network in prediction.FITTING_NETWORKS.items():
        for init in prediction.FITTING_INITIALISATIONS:
            for sparsity in (0.5, 0.95):
                found = densities.predicted_densities(network(), sparsity, init=init, constants=true)
                sizes = {n: p.numel() for n, p in network().named_parameters()}
                cell = {"network": name, "init": init, "sparsity": sparsity, "deviation": 0.0, "n": 10**9}
                rows += [{**cell, "layer": n, "parameters": sizes[n], "density": d} for n, d in found.items()]
    found = prediction.fit_constants(pd.DataFrame(rows))
    assert [found.within, found.between, found.neighbours, found.contrast] == pytest.approx(
        [0.55, 0.35, 0.4, 0.9], abs=0.01
    )


@pytest.mark.parametrize(
    ("network", "init", "explained", "misplaced"),
    [  # none of these was fitted on
        ("LeNet-300-100", "pytorch", 0.99, 0.03),
        ("LeNet-300-100", "xavier_normal", 0.98, 0.05),
        ("LeNet-300-100, 2 layers more", "xavier_uniform", 0.98, 0.05),
        ("LeNet-5", "xavier_normal", 0.95, 0.06),
        ("LeNet-5, half width", "xavier_uniform", 0.93, 0.1),
        ("LeNet-5, 2 layers more", "pytorch", 0.93, 0.1),
        ("LeNet-5, 2 convolutions more", "xavier_uniform", 0.93, 0.1),
    ],
)
def test_shapes_alone_predict_what_snip_keeps_in_networks_not_fitted_on(network, init, explained, misplaced, images):
    measured = prediction.measure_densities(
        *images,
        networks={network: prediction.TEST_NETWORKS.get(network, snipnb.lenet5)},
        inits=[init],
        seeds=range(100, 103),
        sparsities=[0.9, 0.95],
    )
    scores = prediction.score(prediction.compare(measured)).set_index(["sparsity", "rule"])
    for sparsity in (0.9, 0.95):
        own, uniform, kernel = (scores.loc[sparsity, rule] for rule in ("closed_form", "uniform", "erdos_renyi_kernel"))
        assert own["explained"] > explained
        assert own["misplaced"] < misplaced
        assert own["misplaced"] < min(uniform["misplaced"], kernel["misplaced"]) / 2
        assert own["rms_log10_ratio"] < 0.2 < min(uniform["rms_log10_ratio"], kernel["rms_log10_ratio"])


def test_biases_at_zero_are_never_kept(images):
    measured = prediction.measure_densities(
        *images, networks={"LeNet-5": snipnb.lenet5}, inits=["xavier_uniform_zero_bias"], seeds=[0], sparsities=[0.9]
    )
    own = prediction.compare(measured)
    biases = own[own["layer"].str.endswith("bias") & (own["rule"] == "closed_form")]
    assert (biases[["density", "predicted"]] == 0).all(axis=None)
    assert (biases["log10_ratio"] == 0).all()


def test_scores_by_hand():
    rows = {
        "network": "a",
        "init": "b",
        "sparsity": 0.5,
        "layer": ["x", "y"],
        "parameters": [10, 30],
        "density": [0.8, 0.4],
    }
    compared = pd.DataFrame(rows).assign(log10_ratio=[0.3, -0.4])
    scores = prediction.score(
        pd.concat(
            [
                compared.assign(rule="half way", predicted=[0.65, 0.45]),
                compared.assign(rule="uniform", predicted=0.5),
                compared.assign(rule="right", predicted=compared["density"]),
            ]
        )
    )
    assert scores["explained"].tolist() == pytest.approx([0.75, 0, 1])
    assert scores["misplaced"].tolist() == pytest.approx([0.075, 0.15, 0])
    assert scores["rms_log10_ratio"].tolist() == pytest.approx([0.125**0.5] * 3)


def test_bad_measurements_are_named(fitting, images):
    with pytest.raises(ValueError, match="at least two seeds; got fewer"):
        prediction.fit_constants(fitting.assign(deviation=float("nan")))
    for function in (prediction.fit_constants, prediction.compare):
        with pytest.raises(ValueError, match=r"networks must be among LeNet-5, .*; got \['AlexNet'\]"):
            function(fitting.replace({"network": {"LeNet-5": "AlexNet"}}))


def test_collapsed_layers_are_measured_without_a_warning(images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured = prediction.measure_densities(
            *images, networks={"LeNet-5": snipnb.lenet5}, inits=["pytorch"], seeds=[0, 1], sparsities=[0.9999]
        )
    assert (measured["density"] == 0).any()
