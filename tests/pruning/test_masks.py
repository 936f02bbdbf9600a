import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import snipnb
from snipnb.pruning import masks

SALIENCE = {"a.weight": torch.tensor([[0.5, -4.0], [1.0, 0.0]]), "a.bias": torch.tensor([-1.0, 2.0])}


def random_salience(seed=0, **shapes):
    draw = torch.Generator().manual_seed(seed)
    return {name.replace("_", "."): torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def by_sorting(salience, sparsity):
    """The rule of the write-up in plain Python: everything up to the r-th smallest magnitude goes."""
    magnitudes = sorted(abs(v) for s in salience.values() for v in s.flatten().tolist())
    rank = int(Fraction(str(sparsity)) * len(magnitudes))
    threshold = magnitudes[rank - 1] if rank else -1.0
    return {name: [abs(v) > threshold for v in s.flatten().tolist()] for name, s in salience.items()}


def test_hand_computed_mask():
    mask = snipnb.keep_mask(SALIENCE, 0.5)  # magnitudes 0 0.5 1 1 2 4: the third smallest is 1, and both ones go
    assert mask["a.weight"].tolist() == [[False, True], [False, False]]
    assert mask["a.bias"].tolist() == [False, True]
    assert mask["a.bias"].dtype == torch.bool


def test_stable_ties_keep_the_exact_count_and_the_earlier_one():
    mask = snipnb.keep_mask(SALIENCE, 0.5, ties="stable")
    assert mask["a.weight"].tolist() == [[False, True], [True, False]]  # the 1 of a.weight stands before that of a.bias
    assert mask["a.bias"].tolist() == [False, True]


def test_sparsity_zero_removes_nothing_not_even_zeros():
    for ties in masks.TIES:
        assert snipnb.num_kept(snipnb.keep_mask({"w": torch.zeros(5)}, 0, ties=ties)) == 5
        assert snipnb.num_kept(snipnb.keep_mask({"w": torch.zeros(5)}, 0.1, ties=ties)) == 5  # floor(0.5) = 0


def test_all_tied_goes_at_once_under_the_rule_of_the_write_up():
    tied = {"w": torch.ones(10)}
    with pytest.warns(snipnb.LayerCollapseWarning):
        assert snipnb.num_kept(snipnb.keep_mask({"x.weight": torch.ones(10)}, 0.1)) == 0
    assert snipnb.num_kept(snipnb.keep_mask(tied, 0.1, ties="stable")) == 9
    assert snipnb.keep_mask(tied, 0.3, ties="stable")["w"].tolist() == [True] * 7 + [False] * 3


@pytest.mark.parametrize("sparsity", [0, 0.05, 0.25, 1 / 3, 0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_sorting(sparsity, seed):
    salience = random_salience(seed, a_weight=(7, 9), a_bias=(7,), b_weight=(3, 7))
    salience["a.weight"] = salience["a.weight"].mul(3).round() / 3  # many ties
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", snipnb.LayerCollapseWarning)
        mask = snipnb.keep_mask(salience, sparsity)
        stable = snipnb.keep_mask(salience, sparsity, ties="stable")
    assert {name: m.flatten().tolist() for name, m in mask.items()} == by_sorting(salience, sparsity)
    flat, kept = ([x for t in tensors.values() for x in t.flatten().tolist()] for tensors in (salience, stable))
    assert sum(kept) == 91 - int(Fraction(str(sparsity)) * 91)
    largest_first = sorted(range(91), key=lambda i: -abs(flat[i]))  # equals stay in order
    assert {i for i, own in enumerate(kept) if own} == set(largest_first[: sum(kept)])
    assert all(bool((stable[name] | ~m).all()) for name, m in mask.items())  # stable keeps more, never others


@pytest.mark.parametrize("ties", masks.TIES)
def test_masks_nest(ties):
    salience = {"w": torch.randint(20, (40, 5), generator=torch.Generator().manual_seed(1)).float()}
    previous = None
    for sparsity in [0, 0.1, 0.3, 0.5, 0.7, 0.8]:
        mask = snipnb.keep_mask(salience, sparsity, ties=ties)["w"]
        assert previous is None or bool((previous | ~mask).all())
        previous = mask


@pytest.mark.parametrize(("sparsity", "kept"), [(0, 61_706), (0.5, 30_853), (0.95, 3_086), (0.9, 6_171)])
def test_lenet5_counts(sparsity, kept, examples):
    model = snipnb.lenet5(seed=3)
    for ties in masks.TIES:
        assert snipnb.num_kept(snipnb.keep_mask(snipnb.snip(model, *examples), sparsity, ties=ties)) == kept


def test_counts_agree_with_the_pruning_of_torch(examples):
    model = snipnb.lenet5(seed=3)
    salience = snipnb.snip(model, *examples)
    mask = snipnb.keep_mask(salience, 0.9)
    layers = dict(model.named_modules())
    places = [(layers[name.rpartition(".")[0]], name.rpartition(".")[2]) for name in salience]
    scores = {place: salience[name].abs() for place, name in zip(places, salience, strict=True)}
    prune.global_unstructured(places, prune.L1Unstructured, scores, amount=snipnb.num_removed(61_706, 0.9))
    for (layer, parameter), name in zip(places, salience, strict=True):
        assert torch.equal(getattr(layer, f"{parameter}_mask").bool(), mask[name])


@pytest.mark.parametrize(
    ("sparsity", "count", "removed"),
    [
        (0.29, 100, 29),  # 0.29 * 100 is 28.999999999999996 in binary
        (0.57, 100, 57),
        (np.float32(0.95), 61_706, 58_620),
        (np.float64(0.95), 61_706, 58_620),
        (Decimal("0.95"), 61_706, 58_620),
        (Fraction(19, 20), 61_706, 58_620),
        (0, 7, 0),
        (1e-5, 100_000, 1),
    ],
)
def test_sparsity_is_a_decimal_fraction(sparsity, count, removed):
    assert snipnb.num_removed(count, sparsity) == removed


@pytest.mark.parametrize(
    "sparsity", [1, 1.0, -0.1, 1.5, float("nan"), float("inf"), "0.5", None, True, 0.5 + 0j, torch.tensor(0.5), [0.5]]
)
def test_bad_sparsity_is_named(sparsity):
    with pytest.raises(ValueError, match=r"sparsity must be a number in \[0, 1\)"):
        snipnb.keep_mask(SALIENCE, sparsity)


@pytest.mark.parametrize(
    ("salience", "message"),
    [
        ({}, "the salience is empty"),
        ({"w": torch.zeros(0)}, "the salience is empty"),
        ({"w": torch.tensor([1.0, float("nan")])}, "salience of 'w' must be finite; 1 of 2 entries are not"),
        ({"w": torch.ones(2), "v": torch.tensor([float("inf")])}, "salience of 'v' must be finite"),
        ({"w": torch.tensor([-128, 3], dtype=torch.int8)}, r"salience of 'w' must be floating-point; got torch\.int8"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "must be floating-point; got torch.complex64"),
        ({"w": [1.0, 2.0]}, "salience of 'w' must be a tensor; got a list"),
    ],
)
def test_bad_salience_is_named(salience, message):
    for function in (lambda s: snipnb.keep_mask(s, 0.5), snipnb.standardise):
        with pytest.raises(ValueError, match=message):
            function(salience)


def test_unknown_tie_rule_is_named():
    with pytest.raises(ValueError, match="must be one of 'remove', 'stable'; got 'random'"):
        snipnb.keep_mask(SALIENCE, 0.5, ties="random")


def test_layer_collapse_is_a_warning_that_names_the_layer():
    salience = {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2), "b.weight": torch.full((2, 2), 9.0)}
    with pytest.warns(snipnb.LayerCollapseWarning, match=r"nothing is left of a\.weight:"):
        mask = snipnb.keep_mask(salience, 0.6)
    assert snipnb.collapsed_layers(mask) == ["a.weight"]  # the bias vanished too, which cuts nothing
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        snipnb.keep_mask(salience, 0.1, ties="stable")


def test_matrices_and_weights_count_as_layers_whatever_the_others_are_called():
    nothing = torch.zeros(2, dtype=torch.bool)
    mask = {"in_proj_weight": torch.zeros(2, 2, dtype=torch.bool), "norm.weight": nothing, "norm.bias": nothing}
    assert snipnb.collapsed_layers(mask) == ["in_proj_weight", "norm.weight"]
    assert snipnb.collapsed_layers({"weight": torch.zeros(0, 3, dtype=torch.bool)}) == []  # it never had an entry


def test_a_number_to_keep_is_from_none_to_all():
    assert masks.keep_number(SALIENCE, 0)["a.bias"].tolist() == [False, False]
    assert snipnb.num_kept(masks.keep_number(SALIENCE, 6)) == 6
    with pytest.raises(ValueError, match="number must be an integer"):
        masks.keep_number(SALIENCE, 7)
    among = {"a.weight": torch.tensor([[True, False], [False, True]]), "a.bias": torch.tensor([True, False])}
    some = masks.keep_number(SALIENCE, 2, among=among)  # of the magnitudes 0.5, 0 and 1
    assert some["a.weight"].tolist() == [[True, False], [False, False]]
    assert some["a.bias"].tolist() == [True, False]
    assert masks.keep_number(SALIENCE, 3, among=among)["a.weight"].tolist() == [[True, False], [False, True]]
    with pytest.raises(ValueError, match="number must be an integer"):
        masks.keep_number(SALIENCE, 4, among=among)


def test_one_parameter_is_enough():
    assert snipnb.keep_mask({"w": torch.tensor([0.5])}, 0.9)["w"].tolist() == [True]  # floor(0.9) = 0
    assert snipnb.standardise({"w": torch.tensor([-0.5])})["w"].tolist() == [100.0]


def test_layer_table():
    table = snipnb.layer_table(snipnb.keep_mask(SALIENCE, 0.5))
    assert table.columns.tolist() == ["layer", "parameters", "kept", "removed_percent"]
    assert table.to_numpy().tolist() == [["a.weight", 4, 1, 75.0], ["a.bias", 2, 1, 50.0]]


def test_percentages_rank_alike_and_sum_to_100():
    salience = random_salience(a_weight=(6, 6), a_bias=(6,))
    shares = snipnb.standardise(salience)
    assert float(sum(s.sum() for s in shares.values())) == pytest.approx(100, abs=1e-9)
    for sparsity in (0.05, 0.5, 0.8):
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                snipnb.keep_mask(shares, sparsity).values(), snipnb.keep_mask(salience, sparsity).values(), strict=True
            )
        )
    with pytest.raises(ValueError, match="every salience is zero"):
        snipnb.standardise({"w": torch.zeros(3)})


def test_percentages_of_huge_saliences_do_not_overflow():
    shares = snipnb.standardise({"w": torch.full((4,), 1e308, dtype=torch.float64)})
    assert shares["w"].tolist() == [25.0] * 4


def test_a_tied_parameter_is_refused_before_anything_is_pruned():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    mask = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"'0\.weight' and '1\.weight' are one tied parameter"):
        snipnb.apply_mask(model, mask)
    assert not prune.is_pruned(model)


def test_a_parameter_that_is_none_hides_no_tied_one():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Module())
    model[1].register_parameter("scale", None)
    model[1].register_parameter("weight", model[0].weight)
    mask = {"0.weight": torch.ones(4, 4, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"'0\.weight' and '1\.weight' are one tied parameter"):
        snipnb.apply_mask(model, mask)


def test_a_name_that_pruning_needs_and_is_taken_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].register_buffer("weight_mask", torch.ones(1))
    mask = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="already has an attribute 'weight_mask'"):
        snipnb.apply_mask(model, mask)
    assert not prune.is_pruned(model)


def test_applied_masks_hold_under_an_optimiser(examples):
    images, labels = examples
    model = snipnb.lenet5(seed=0)
    mask = snipnb.keep_mask(snipnb.snip(model, images, labels), 0.95)
    assert snipnb.apply_mask(model, mask) is model
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    model(images)
    for name, m in mask.items():
        layer, _, parameter = name.rpartition(".")
        assert bool((getattr(model.get_submodule(layer), parameter)[~m] == 0).all())


def good_mask():
    return {name: torch.ones_like(p, dtype=torch.bool) for name, p in snipnb.lenet5().named_parameters()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("full3.bias"), r"\['full3.bias'\] only in the model"),
        (lambda m: m.update({"full4.bias": torch.ones(1, dtype=torch.bool)}), r"\['full4.bias'\] only in the mask"),
        (
            lambda m: m.update({"full3.bias": torch.ones(11, dtype=torch.bool)}),
            r"shape \(10,\); got \(11,\)",
        ),
        (lambda m: m.update({"full3.bias": torch.ones(10)}), "must be a tensor of torch.bool"),
        (lambda m: m.update({"full3.bias": [True] * 10}), "must be a tensor of torch.bool .*; got list"),
        (lambda m: m.clear(), "the mask is empty"),
    ],
)
def test_a_mask_that_does_not_fit_changes_nothing(change, message):
    model, mask = snipnb.lenet5(), good_mask()
    change(mask)
    with pytest.raises(ValueError, match=message):
        snipnb.apply_mask(model, mask)
    assert not prune.is_pruned(model)


def test_a_model_that_is_pruned_already_is_said_so():
    model = snipnb.apply_mask(snipnb.lenet5(), good_mask())
    with pytest.raises(ValueError, match="the model is pruned already"):
        snipnb.apply_mask(model, good_mask())
