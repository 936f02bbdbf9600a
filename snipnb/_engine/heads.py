"""What follows a layer, where it is only linear layers and ReLUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snipnb._engine.propagation import Flat, Gate, Mix, Norm, Step


@dataclass
class Head:
    """What follows a layer, as matrices with a ReLU between neighbouring matrices."""

    layer: Mix
    scale: Tensor  # [channels]: batch norms before the layer's own gate
    gate: int | None  # index of that gate's step, if there is one
    matrices: list[Tensor]  # [hidden, channels * positions], ..., [classes, hidden]
    gates: list[int]  # indices of the steps of the ReLUs between the matrices

    @classmethod
    def after(cls, steps: Sequence[Step], k: int) -> Head | None:
        """The head that follows step k, or None if something else follows."""
        layer = steps[k]
        if not isinstance(layer, Mix):
            return None
        scale = columns = layer.weight.new_ones(layer.outputs)  # columns: of each channel after its own gate
        gate: int | None = None
        matrices: list[Tensor] = []
        gates: list[int] = []
        own = True  # still channel by channel, before the layer's own gate
        matrix: Tensor | None = None  # what comes next: matrix (None: identity) times diag(columns)
        for index, step in enumerate(steps[k + 1 :], k + 1):
            if isinstance(step, Mix) and step.is_linear_layer:
                mixing, own = step.weight[:, 0], False
                matrix = mixing * columns if matrix is None else mixing @ matrix
            elif isinstance(step, Norm):
                if matrix is not None:
                    matrix = step.scale[:, 0] * matrix
                elif own:
                    scale = scale * step.scale[:, 0, 0]
                else:
                    columns = columns * step.scale[:, 0, 0]
            elif isinstance(step, Flat):
                columns, own = columns.repeat_interleave(step.positions), False
            elif isinstance(step, Gate) and matrix is not None:
                matrices.append(matrix)
                gates.append(index)
                columns, matrix = matrix.new_ones(len(matrix)), None
            elif isinstance(step, Gate) and own:
                gate, own = index, False
            else:
                return None
        return cls(layer, scale, gate, [*matrices, torch.diag(columns) if matrix is None else matrix], gates)
