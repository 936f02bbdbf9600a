"""Iterative magnitude pruning: train, remove the smallest, go back to the start. An upper reference for criteria that do not train."""

from __future__ import annotations

import copy

import torch

from snipnb._checks import Salience, float_parameters
from snipnb.data import Split
from snipnb.pruning.criteria import Start
from snipnb.pruning.masks import keep_number, num_kept
from snipnb.training.loop import train_together
from snipnb.training.recipe import Recipe

ROUND = 0.2  # share of what is left that a round removes
OF_ROUNDS = Recipe(epochs=3, learning_rate=0.01, schedule="one_cycle")  # how each round trains
LEAST = 0.01  # share of all parameters at which the rounds end


def removal_order(start: Start) -> Salience:
    """The salience of iterative magnitude pruning: the later a parameter is removed, the larger.

    **Definition.** Train the network, remove the :data:`ROUND` share of what is left with the smallest trained magnitudes, set what is left to its
    initial weights, and repeat until :data:`LEAST` is left. Each round gives every parameter that it trains the number of the round (from 0) plus its
    rank by trained magnitude among all parameters, divided by their number. So the mask at any sparsity is the mask of the last whole round that keeps more, pruned further by a shorter round.

    **Source.** Frankle and Carbin (2019), The lottery ticket hypothesis. Departs from it: biases are ranked with the weights, all layers alike.
    """
    nothing = start.images[:0], start.labels[:0]
    split = Split("all", start.images, start.labels, *nothing, *nothing)
    kept = {name: torch.ones_like(p, dtype=torch.bool) for name, p in float_parameters(start.model).items()}
    order = {name: torch.zeros(m.shape, dtype=torch.float64) for name, m in kept.items()}
    left = total = num_kept(kept)
    number = 0
    while left > LEAST * total:
        model = copy.deepcopy(start.model)
        train_together([model], split, masks=[kept], recipe=OF_ROUNDS, data_seed=start.seed)
        size = {name: p.abs() for name, p in float_parameters(model).items()}
        among = torch.cat([s.masked_fill(~kept[n], -1).flatten() for n, s in size.items()])
        ranks = among.argsort(stable=True).argsort().double().cpu()
        parts = (number + ranks / total).split([s.numel() for s in size.values()])
        for (name, o), part in zip(order.items(), parts, strict=True):
            order[name] = part.view(o.shape).where(kept[name].cpu(), o)
        left, number = min(left - 1, round((1 - ROUND) * left)), number + 1
        kept = keep_number(size, left, among=kept)
    return order
