"""Exact and Taylor saliences of networks that the fast ways do not cover, against brute force in float64."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import snipnb
from snipnb.pruning import criteria
from snipnb.saliences import ablation, brute_force, taylor


class InPlace(nn.Module):
    """A residual block that writes in place, as torchvision's do."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norm, self.around = nn.BatchNorm2d(4), nn.Conv2d(1, 4, 1)
        self.relu, self.last = nn.ReLU(inplace=True), nn.Linear(4 * 36, 3)

    def forward(self, x):
        h = self.norm(self.second(self.relu(self.first(x))))
        h += self.around(x)
        return self.last(self.relu(h).flatten(1))


class Attention(nn.Module):
    """A transformer over the rows of an image, or over words."""

    def __init__(self, words=0):
        super().__init__()
        self.embed = nn.Embedding(words, 8) if words else nn.Linear(6, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 12, activation="gelu", batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.encoder(self.embed(x if x.dim() == 2 else x.squeeze(1))).mean(1))


class Shared(nn.Module):
    """One layer used twice, and a scale that is no layer of PyTorch."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(36, 36), nn.Linear(36, 3)
        self.scale = nn.Parameter(torch.full((36,), 0.7))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.last(self.scale * self.layer(torch.tanh(self.layer(x.flatten(1)))))


class Choosing(nn.Module):
    """Looks at numbers while it runs, so that it cannot be mapped."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(36, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = self.layer(x.flatten(1))
        return self.last(torch.relu(h) if float(self.layer.weight.abs().sum()) > 0 else h)


NETWORKS = {
    "in place": InPlace,
    "attention": Attention,
    "words": lambda: Attention(words=9),
    "shared": Shared,
    "choosing": Choosing,
    "GELU": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 7), nn.GELU(), nn.Linear(7, 3)),
}
SMOOTH = ("attention", "words", "shared", "GELU")


def case(name, number=30, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(3)
        model, images = NETWORKS[name]().to(dtype), torch.randn(number, 1, 6, 6, dtype=dtype)
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        if name == "words":
            images = torch.randint(9, (number, 5))
        return model, images, torch.randint(3, (number,))


def largest(salience):
    return max(float(s.abs().max()) for s in salience.values())


def furthest(one, other):
    assert one.keys() == other.keys()
    return max(float((one[n].double() - other[n].double()).abs().max()) for n in one)


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_saliences_agree_with_brute_force(name):
    model, images, labels = case(name)
    sample = snipnb.stratified_sample(model, 8)
    before = copy.deepcopy(model.train().state_dict())
    expected = brute_force.ablation_salience(model, images, labels, parameters=sample)
    found = snipnb.exact_salience(model, images, labels, parameters=sample)
    assert furthest(found, expected) < 1e-12 * largest(expected)
    single = copy.deepcopy(model).float()
    images = images.float() if images.is_floating_point() else images
    expected = brute_force.ablation_salience(single, images, labels, parameters=sample)
    found = snipnb.exact_salience(single, images, labels, parameters=sample)
    assert all(s.dtype == torch.float32 for s in found.values())
    assert furthest(found, expected) < 1e-6 * largest(expected)  # computed in float64, rounded once
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_mapped_where_it_can_be(name, monkeypatch):
    seen, own = set(), ablation._logits

    def logits(*given):
        found = own(*given)
        seen.add(found[1])
        return found

    monkeypatch.setattr(ablation, "_logits", logits)
    model, images, labels = case(name)
    snipnb.exact_salience(model, images, labels, parameters=snipnb.stratified_sample(model, 3))
    assert seen == ({True, False} if name == "choosing" else {True})


def test_parts_give_what_one_pass_gives(monkeypatch):
    model, images, labels = case("in place", 23)
    expected = brute_force.ablation_salience(model, images, labels)
    found = snipnb.exact_salience(model, images, labels)
    assert {n: s.shape for n, s in found.items()} == {n: p.shape for n, p in model.named_parameters()}
    assert furthest(found, expected) < 1e-12 * largest(expected)
    sample = snipnb.stratified_sample(model, 7)
    for versions, at_once, numbers in ((3, 5, 2**24), (64, 100, 2000)):
        monkeypatch.setattr(ablation, "VERSIONS", versions)
        monkeypatch.setattr(ablation, "IMAGES", at_once)
        monkeypatch.setattr(ablation, "TEMPORARY", numbers)
        found = snipnb.exact_salience(model, images, labels, parameters=sample)
        assert furthest(found, brute_force.pick(expected, sample)) < 1e-12 * largest(expected)


def test_what_has_no_effect_is_exactly_zero():
    model, images, labels = case("shared")
    with torch.no_grad():
        model.last.weight[:, 4] = 0  # nothing leads on from unit 4
    found = snipnb.exact_salience(model, images, labels)
    assert not found["unused"].any()
    assert float(found["scale"][4]) == 0
    assert not found["last.weight"][:, 4].any()
    assert bool(found["last.weight"][:, :4].all())


def test_small_changes_keep_their_digits():
    model, images, labels = case("GELU", dtype=torch.float32)
    with torch.no_grad():
        model[3].weight[:, 2] *= 1e-9
    expected = brute_force.ablation_salience(model, images, labels)["1.bias"][2]
    found = snipnb.exact_salience(model, images, labels)["1.bias"][2]
    slope = snipnb.taylor_salience(copy.deepcopy(model).double(), images.double(), labels, order=2)["1.bias"][2]
    assert abs(float(found)) < 1e-8
    assert float(found) == pytest.approx(float(slope), rel=0.05)
    assert float(found) == pytest.approx(float(expected), abs=1e-15)


def test_a_long_wait_is_said_beforehand(monkeypatch):
    model, images, labels = case("attention")
    said = []
    monkeypatch.setattr(ablation, "note", said.append)
    sample = {"last.weight": torch.tensor([0, 5])}
    snipnb.exact_salience(model, images, labels, parameters=sample)
    assert said == ["exact salience: 2 parameters, each a pass over 30 images, at most 1 seconds"]
    monkeypatch.setattr(ablation, "MOST", 1000)
    count = sum(p.numel() for p in model.parameters())
    words = (
        rf"the model is a Attention; it must be.*each of {count:,} parameters takes a pass over 30 images, up to "
        r"\d+ (seconds|minutes) in all here; give parameters=snipnb.stratified_sample"
    )
    with pytest.raises(ValueError, match=words):
        snipnb.exact_salience(model, images, labels)
    assert len(snipnb.exact_salience(model, images, labels, parameters=sample)["last.weight"]) == 2


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 seconds"),
        (119, "119 seconds"),
        (120, "2 minutes"),
        (7300, "2 hours"),
        (1e6, "12 days"),
        (1e9, "32 years"),
    ],
)
def test_a_time_is_said_in_the_unit_that_suits_it(seconds, words):
    assert ablation._duration(seconds) == words


def test_networks_with_tensors_of_their_own_run_in_their_own_dtype():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(36, 3)

        def forward(self, x):
            return self.layer(x.flatten(1)) @ torch.eye(3)  # float32, whatever the network is

    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        model, images = Fixed(), torch.randn(20, 1, 6, 6)
    labels = torch.arange(20) % 3
    found = snipnb.exact_salience(model, images, labels)["layer.weight"]
    plain = nn.Sequential(nn.Flatten(), model.layer)
    torch.testing.assert_close(found, snipnb.exact_salience(plain, images, labels)["1.weight"], rtol=1e-3, atol=1e-6)


def test_masked_networks_are_scored_through_their_masks():
    model, images, labels = case("GELU")
    mask = snipnb.keep_mask(snipnb.magnitude_salience(model), 0.5)
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in pruned.named_parameters():
            p *= mask[name]
    expected = snipnb.exact_salience(pruned, images, labels)
    found = snipnb.exact_salience(snipnb.apply_mask(model, mask), images, labels)
    torch.testing.assert_close(found["1.weight_orig"], expected["1.weight"], rtol=1e-9, atol=1e-14)


def test_errors_name_what_does_not_fit():
    model, images, labels = case("GELU")
    with pytest.raises(ValueError, match="3 outputs accept 0 to 2"):
        snipnb.exact_salience(model, images, labels + 1)
    with pytest.raises(ValueError, match=r"images are torch\.float32 and the model's parameters torch\.float64"):
        snipnb.exact_salience(model, images.float(), labels)
    with pytest.raises(ValueError, match="unknown name 'weight'"):
        snipnb.exact_salience(model, images, labels, parameters={"weight": [0]})
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="logits of some images are not finite"):
        snipnb.exact_salience(model, images, labels)


def test_networks_that_draw_or_mix_images_are_refused():
    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(36, 3)

        def forward(self, x):
            return F.dropout(self.layer(x.flatten(1)), 0.5)

    images, labels = torch.randn(9, 1, 6, 6), torch.arange(9) % 3
    with pytest.raises(ValueError, match="the Drawing gives other logits at a second call"):
        snipnb.exact_salience(Drawing(), images, labels)
    mixing = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.GELU())
    with pytest.raises(ValueError, match="layer '2' has no running statistics"):
        snipnb.exact_salience(mixing, images, labels)
    with pytest.raises(ValueError, match="3 outputs accept 0 to 2"):
        snipnb.diagonal_hessian(nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.GELU()), images, labels + 1)


def test_weights_in_any_order_of_memory():
    model, images, labels = case("in place")
    expected = snipnb.exact_salience(model, images, labels)
    found = snipnb.exact_salience(copy.deepcopy(model).to(memory_format=torch.channels_last), images, labels)
    assert furthest(found, expected) < 1e-12 * largest(expected)


# --- how well saliences agree ---------------------------------------------------------------------------------------


def test_a_sample_has_the_saliences_of_the_network():
    model, images, labels = case("attention")
    second = snipnb.taylor_salience(model, images, labels, order=1)
    sample = snipnb.sampled_saliences(model, images, labels, per_tensor=5, seed=2, others={"first": second})
    assert (sample["first"] == sample["snip"]).all()
    chosen = {name: torch.tensor(part["index"].to_numpy()) for name, part in sample.groupby("layer", sort=False)}
    assert {n: c.tolist() for n, c in snipnb.stratified_sample(model, 5, seed=2).items()} == {
        n: c.tolist() for n, c in chosen.items()
    }
    exact = brute_force.ablation_salience(model, images, labels, parameters=chosen)
    assert sample["exact"].to_numpy() == pytest.approx(torch.cat(list(exact.values())).numpy(), rel=1e-9, abs=1e-14)
    assert sample["weight"].sum() == pytest.approx(sum(p.numel() for p in model.parameters()))
    found = snipnb.agreement(sample, resamples=50)
    assert found["salience"].tolist() == ["snip", "first"]
    assert (found["low95"] <= found["spearman"]).all()
    assert found["spearman"].between(0.5, 1).all()
    assert snipnb.agreement(sample, resamples=0)["low95"].isna().all()
    alone = snipnb.sampled_saliences(model, images, labels, per_tensor=1)  # says nothing of the spread within a tensor
    assert snipnb.agreement(alone, resamples=50)[["low95", "high95"]].isna().all(axis=None)


def hand_sample(**saliences):
    """Four parameters: two stand for themselves, two for three each."""
    sample = pd.DataFrame({"layer": list("aabb"), "weight": [1.0, 1.0, 3.0, 3.0], "exact": [1.0, -2.0, 4.0, 0.0]})
    return sample.assign(**saliences)


def test_agreement_of_a_sample_by_hand():
    found = snipnb.agreement(hand_sample(snip=[2.5, -2.0, 3.0, 1.0], mine=[1.5, -2.0, 12.0, 1.0]), resamples=0)
    assert found["salience"].tolist() == ["snip", "mine"]
    assert found["drawn"].tolist() == [4, 4]
    # mean ranks of the magnitudes, each with its weight: exact 3.5, 4.5, 6.5, 1.5; snip 4.5, 3.5, 6.5, 1.5; their mean is 4.
    # Products of deviations -0.25 - 0.25 + 3 * 6.25 + 3 * 6.25 = 37, squares 0.25 + 0.25 + 18.75 + 18.75 = 38.
    assert found["spearman"].tolist() == pytest.approx([37 / 38, 1])
    # snip differs by 1.5 (once), 0 (once), 0.25 (three times): 0.25 is in the middle; mine by 0.5, 0, and 2 three times
    assert found["median_relative_difference"].tolist() == [0.25, 2]


def test_differences_are_relative_to_what_is_not_zero():
    sample = hand_sample(snip=[2.5, -2.0, 3.0, 1.0])
    one = sample.assign(exact=[0.0, 0.0, 4.0, 0.0])
    assert snipnb.agreement(one, resamples=0)["median_relative_difference"][0] == 0.25  # of one parameter
    none = snipnb.agreement(sample.assign(exact=0.0), resamples=3)
    assert none.drop(columns=["salience", "drawn"]).isna().all(axis=None)  # what does not vary has no ranks either


def test_intervals_of_agreement_are_a_bootstrap_within_tensors():
    sample = hand_sample(snip=[2.5, -2.0, 3.0, 1.0])
    sample = pd.concat(
        [sample, sample.assign(snip=[1.0, 3.0, 2.0, 0.5], exact=[1.5, 2.5, 0.5, -3.0])], ignore_index=True
    )
    draw, again = np.random.default_rng(0), []
    for _ in range(60):
        rows = np.concatenate([draw.choice(np.flatnonzero(sample["layer"] == layer), 4) for layer in "ab"])
        own = sample.iloc[np.repeat(rows, sample["weight"][rows].astype(int))]  # a row for every parameter
        again.append(own["snip"].abs().corr(own["exact"].abs(), method="spearman"))
    found = snipnb.agreement(sample, resamples=60)
    assert found[["low95", "high95"]].values[0] == pytest.approx(np.nanpercentile(again, [2.5, 97.5]))


def test_what_is_no_sample_is_refused():
    model, images, labels = case("GELU")
    with pytest.raises(ValueError, match="per_tensor must be an integer of at least 1; got 0"):
        snipnb.sampled_saliences(model, images, labels, per_tensor=0)
    with pytest.raises(ValueError, match="names of salience 'mine' and model differ"):
        snipnb.sampled_saliences(model, images, labels, others={"mine": {}})
    with pytest.raises(
        ValueError, match="others must not use the names layer, index, weight, exact, snip; got 'exact'"
    ):
        snipnb.sampled_saliences(model, images, labels, others={"exact": {}})
    longer = {name: torch.zeros(p.numel() + 1) for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"salience 'mine' of .* must have the parameter's shape"):
        snipnb.sampled_saliences(model, images, labels, others={"mine": longer})
    sample = snipnb.sampled_saliences(model, images, labels, per_tensor=2)
    with pytest.raises(ValueError, match="the sample has no column 'exact'; it has layer, index, weight, snip"):
        snipnb.agreement(sample.drop(columns="exact"))
    with pytest.raises(ValueError, match="the sample has no column 'snip'"):
        snipnb.agreement(sample.drop(columns="snip"))


# --- derivatives ------------------------------------------------------------------------------------------------------


def second_derivatives(model, images, labels, sample):
    """One backward pass of the gradient for each entry; attention without fused kernels."""
    model = copy.deepcopy(model).eval()
    values = dict(model.named_parameters())
    with ablation.ordinary_attention():
        loss = F.cross_entropy(model(images), labels)
        slopes = torch.autograd.grad(loss, list(values.values()), create_graph=True, materialize_grads=True)
        found = {}
        for (name, value), slope in zip(values.items(), slopes, strict=True):
            rows = [
                torch.autograd.grad(slope.flatten()[i], value, retain_graph=True, materialize_grads=True)[0].flatten()[
                    i
                ]
                if slope.requires_grad
                else slope.new_zeros(())
                for i in sample[name]
            ]
            found[name] = torch.stack(rows)
    return found


@pytest.mark.parametrize("name", [*SMOOTH, "in place"])
def test_second_derivatives_of_a_sample(name):
    model, images, labels = case(name, 12)
    sample = snipnb.stratified_sample(model, 4)
    expected = second_derivatives(model, images, labels, sample)
    found = snipnb.diagonal_hessian(model, images, labels, parameters=sample)
    assert furthest(found, expected) < 1e-10 * largest(expected)
    assert largest(expected) > 0
    slopes = brute_force.pick(snipnb.snip(model, images, labels), sample)
    weights = brute_force.pick(dict(model.named_parameters()), sample)
    second = snipnb.taylor_salience(model, images, labels, parameters=sample)
    for n in sample:
        torch.testing.assert_close(second[n], -slopes[n] + weights[n] ** 2 * expected[n] / 2, rtol=1e-8, atol=1e-12)
    first = snipnb.taylor_salience(model, images, labels, order=1, parameters=sample)
    assert furthest(first, {n: -s for n, s in slopes.items()}) == 0


def test_a_sample_of_the_closed_form_is_a_part_of_it():
    images, labels = snipnb.load_mnist("test", sample=True)
    model, images, labels = snipnb.lenet5(), images[:50], labels[:50]
    sample = snipnb.stratified_sample(model, 5)
    for function, options in (
        (snipnb.diagonal_hessian, {}),
        (snipnb.taylor_salience, {"order": 3}),
        (snipnb.taylor_salience, {"order": "linear-region"}),
    ):
        whole = function(model, images, labels, **options)
        some = function(model, images, labels, parameters=sample, **options)
        assert furthest(some, brute_force.pick(whole, sample)) == 0
    third = taylor.derivatives(model, images, labels, order=3, parameters=sample)
    assert [list(d) for d in third] == [list(sample)] * 3


def test_a_sample_needs_no_room_for_all_directions():
    model = nn.Sequential(nn.Linear(1000, 1000), nn.GELU(), nn.Linear(1000, 3))
    images, labels = torch.randn(2, 1000), torch.tensor([0, 1])
    sample = {"0.weight": torch.arange(40) * 20_000}  # directions of all 1,000,000 would take 4 TB
    found = snipnb.diagonal_hessian(model, images, labels, parameters=sample)
    assert found["0.weight"].shape == (40,)


def test_what_has_no_second_derivative_is_named():
    class Counting(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 2

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(36, 3)

        def forward(self, x):
            return Counting.apply(self.layer(x.flatten(1)))

    model, images, labels = Own(), torch.randn(5, 1, 6, 6), torch.zeros(5, dtype=torch.long)
    with pytest.raises(ValueError, match=r"parameter 'layer\.\w+' of the Own cannot be differentiated 2 times"):
        snipnb.diagonal_hessian(model, images, labels)
    expected = brute_force.ablation_salience(model, images, labels)
    assert furthest(snipnb.exact_salience(model, images, labels), expected) < 1e-6 * largest(expected)


def test_a_parameter_that_no_layer_uses_has_no_salience():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model.register_parameter("spare", nn.Parameter(torch.ones(2)))
    images, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1, 1])
    found = snipnb.exact_salience(model, images, labels)
    assert found["spare"].tolist() == [0, 0]
    assert found["0.weight"].any()
    chosen = snipnb.exact_salience(model, images, labels, parameters={"spare": torch.tensor([1])})
    assert chosen["spare"].tolist() == [0]
    assert snipnb.snip(model, images, labels)["spare"].tolist() == [0, 0]


def test_words_that_an_embedding_does_not_have_are_said():
    model = nn.Sequential(nn.Embedding(10, 3), nn.Flatten(), nn.Linear(6, 2))
    with pytest.raises(ValueError, match="the Sequential cannot be run on images of shape"):
        snipnb.exact_salience(model, torch.tensor([[1, 12]]), torch.tensor([0]))


class Counting(nn.Module):
    """Writes the number of its calls into a buffer, in place or as a new tensor."""

    def __init__(self, in_place):
        super().__init__()
        self.layer, self.in_place = nn.Linear(3, 2), in_place
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.in_place:
            self.calls += 1
        else:
            self.calls = self.calls + 1
        return self.layer(x)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("criterion", ["snip", "exact", "grasp", "prospr", "iterative_snip", "fisher", "fisher_taylor"])
def test_saliences_write_nothing_into_a_model(criterion, in_place):
    model = Counting(in_place)
    images, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1, 1])
    start = snipnb.Start(model, images, labels.to(torch.int32), seed=0)
    mask = criteria.mask_for(criterion, start, criteria.salience_for(criterion, start), 0.5)
    assert sum(int(m.sum()) for m in mask.values()) == 4
    assert float(model.calls) == 0


def test_taylor_saliences_write_nothing_into_a_model():
    model = Counting(in_place=False)
    images, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1, 1])
    assert snipnb.taylor_salience(model, images, labels, order=2)["layer.weight"].any()
    assert float(model.calls) == 0
