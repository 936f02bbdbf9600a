"""Parameters on a path from input to output, against what changes an output when it is removed."""

import pytest
import torch
from torch import nn

import snipnb
from snipnb.pruning.masks import keep_number, num_kept
from snipnb.pruning.paths import on_paths


def positive(*layers):
    """A network of positive weights without biases: no two paths can cancel."""
    model = nn.Sequential(*layers).double()
    draw = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        p.data = torch.rand(p.shape, generator=draw, dtype=p.dtype) * (0 if name.endswith("bias") else 1)
    return model


NETWORKS = {
    "linear layers": ([nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)], (4,)),
    "convolutions": (
        [
            *[nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)],
            *[nn.Conv2d(4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)],
        ],
        (1, 6, 6),
    ),
}


@pytest.mark.parametrize(("name", "share"), [("linear layers", 0.3), ("linear layers", 0.4), ("convolutions", 0.15)])
def test_a_weight_counts_if_its_removal_changes_an_output(name, share):
    layers, shape = NETWORKS[name]
    model = positive(*layers)
    draw = torch.Generator().manual_seed(3)
    mask = {n: torch.rand(p.shape, generator=draw) < share for n, p in model.named_parameters()}
    images = torch.rand(2, *shape, generator=draw, dtype=torch.float64)
    for n, p in model.named_parameters():
        p.data *= mask[n]
    found, before = on_paths(model, mask, images), model(images)
    seen = set()
    for n, p in model.named_parameters():
        for i in mask[n].flatten().nonzero()[:, 0]:
            old = p.data.view(-1)[i].clone()
            # A bias of one adds a path that begins there; a weight of zero takes its paths away.
            p.data.view(-1)[i] = 1 if n.endswith("bias") else 0
            changed = not torch.equal(model(images), before)
            p.data.view(-1)[i] = old
            assert bool(found[n].view(-1)[i]) == changed, (n, int(i))
            seen.add(changed)
        assert not (found[n] & ~mask[n]).any()
    assert seen == {True, False}


def test_a_maximum_passes_paths_of_all_its_inputs():
    pools = [nn.MaxPool2d(2, stride=1, padding=0), nn.AvgPool2d(2, stride=1, padding=0)]
    one, other = (nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), pool, nn.Flatten(), nn.Linear(8, 2)) for pool in pools)
    draw = torch.Generator().manual_seed(0)
    mask = {n: torch.rand(p.shape, generator=draw) < 0.3 for n, p in one.named_parameters()}
    a, b = (on_paths(model, mask, torch.zeros(1, 1, 4, 4)) for model in (one, other))
    assert all(torch.equal(a[n], b[n]) for n in mask)
    assert 0 < num_kept(a) < num_kept(mask)


def test_all_of_a_network_counts_and_nothing_of_one_that_is_cut(examples):
    images, _ = examples
    model = snipnb.lenet5()
    everything = {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters()}
    assert num_kept(on_paths(model, everything, images)) == 61_706
    cut = {n: m & ("full2" not in n) for n, m in everything.items()}
    found = on_paths(model, cut, images)
    assert {n: int(m.sum()) for n, m in found.items() if m.any()} == {"full3.bias": 10}  # which begin behind the cut
    assert [p.requires_grad for p in model.parameters()] == [True] * 10
    assert model.training


def test_a_mask_that_does_not_fit_is_named(examples):
    model = snipnb.lenet5()
    mask = keep_number(snipnb.magnitude_salience(model), 100)
    with pytest.raises(ValueError, match="mask"):
        on_paths(model, {n: m for n, m in mask.items() if n != "full3.bias"}, examples[0])
    with pytest.raises(ValueError, match=r"must be an nn\.Sequential"):
        on_paths(nn.ModuleList([nn.Linear(2, 2)]), mask, examples[0])


def test_a_shared_pooling_passes_all_paths_both_times():
    pool, draw = nn.MaxPool2d(2), torch.Generator().manual_seed(2)
    first, second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
    one, other = (
        nn.Sequential(first, pools[0], second, pools[1], nn.Flatten(), nn.Linear(8, 3))
        for pools in ((pool, pool), (nn.MaxPool2d(2), nn.MaxPool2d(2)))
    )
    mask = {n: torch.rand(p.shape, generator=draw) < 0.15 for n, p in one.named_parameters()}
    a, b = (on_paths(model, mask, torch.zeros(1, 1, 8, 8)) for model in (one, other))
    assert all(torch.equal(a[n], b[n]) for n in mask)


def test_a_shared_relu_and_a_log_softmax_change_no_path():
    draw, relu = torch.Generator().manual_seed(1), nn.ReLU()
    layers = [nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 3)]
    plain = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    for other in (
        nn.Sequential(layers[0], relu, layers[1], relu, layers[2]),
        nn.Sequential(*plain, nn.LogSoftmax(1)),
    ):
        for _ in range(20):
            mask = {n: torch.rand(p.shape, generator=draw) < 0.4 for n, p in plain.named_parameters()}
            a, b = (on_paths(model, mask, torch.zeros(1, 4)) for model in (plain, other))
            assert all(torch.equal(a[n], b[n]) for n in mask)


def test_a_chain_that_begins_at_a_bias_makes_the_bias_count_and_not_the_weights_behind_it():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    mask = {
        "0.weight": torch.tensor([[True, False], [False, False]]),  # nothing leads into the second unit
        "0.bias": torch.tensor([True, True]),
        "2.weight": torch.tensor([[True, True]]),
        "2.bias": torch.tensor([True]),
    }
    found = on_paths(model, mask, torch.zeros(1, 2))
    assert {n: m.tolist() for n, m in found.items()} == {
        "0.weight": [[True, False], [False, False]],
        "0.bias": [True, True],
        "2.weight": [[True, False]],
        "2.bias": [True],
    }


def test_a_batch_norm_passes_paths_whatever_its_statistics():
    norm, draw = nn.BatchNorm2d(3), torch.Generator().manual_seed(4)
    norm.running_mean.fill_(50)
    conv, linear = nn.Conv2d(1, 3, 3), nn.Linear(12, 2)
    plain = nn.Sequential(conv, nn.Identity(), nn.ReLU(), nn.Flatten(), linear)
    normed = nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), linear)
    mask = {n: torch.rand(p.shape, generator=draw) < 0.3 for n, p in normed.named_parameters()}
    mask |= {n: torch.tensor([True, True, False]) for n in ("1.weight", "1.bias")}
    found = on_paths(normed, mask, torch.zeros(1, 1, 4, 4))
    # A norm that is pruned in a channel is a channel whose weights are pruned.
    as_plain = {n: m.clone() for n, m in mask.items() if not n.startswith("1.")}
    as_plain["0.weight"][2] = as_plain["0.bias"][2] = False
    expected = on_paths(plain, as_plain, torch.zeros(1, 1, 4, 4))
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    assert found["1.weight"].any()
    assert torch.equal(found["1.weight"], found["0.weight"].flatten(1).any(1))
