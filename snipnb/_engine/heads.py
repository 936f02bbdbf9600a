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
    relu: bool  # whether it has a ReLU
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
        relu = False
        matrices: list[Tensor] = []
        gates: list[int] = []
        flat = False  # whether channels have become features
        matrix: Tensor | None = None  # what comes next: matrix (None: identity) times diag(columns)
        for index, step in enumerate(steps[k + 1 :], k + 1):
            if isinstance(step, Mix) and step.is_linear_layer:
                mixing = step.weight[:, 0]
                matrix = mixing * columns if matrix is None else mixing @ matrix
            elif isinstance(step, Norm):
                if matrix is not None:
                    matrix = step.scale[:, 0] * matrix
                elif gate is None and not gates and not flat:
                    scale = scale * step.scale[:, 0, 0]
                else:
                    columns = columns * step.scale[:, 0, 0]
            elif isinstance(step, Flat) and matrix is None and not gates:
                columns, flat = columns.repeat_interleave(step.positions), True
            elif isinstance(step, Gate) and step.windows is None:
                if matrix is None and (gate is not None or gates or flat):
                    return None  # no gate of the layer's own, channel by channel, or a second one
                if matrix is None:
                    gate, relu = index, step.relu
                else:
                    matrices.append(matrix)
                    gates.append(index)
                    columns, matrix = matrix.new_ones(len(matrix)), None
            else:
                return None
        return cls(layer, scale, gate, relu, [*matrices, torch.diag(columns) if matrix is None else matrix], gates)


def before_relu(kept: tuple[Tensor, ...]) -> Tensor:
    """The inputs of a ReLU [images, units], from what its step keeps."""
    gap, floor = kept
    return (gap - floor)[0, 0].T.contiguous()
