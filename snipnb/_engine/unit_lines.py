"""The loss along one unit of a linear layer, known piece by piece: exact salience without a forward pass.

Zeroing w_ui changes unit u of one image by a single number, d = -w_ui x_i. Where only linear layers and ReLUs follow, the
logits are piecewise affine in d: they are z + J d until one of these ReLUs switches. Within a piece the loss change is the
cumulant generating function of the slopes J under the softmax p,

    log sum_c p_c exp((J_c - J_y) d) = kappa_1 d + kappa_2 d^2 / 2 + kappa_3 d^3 / 6 + ...

The series converges for abs(d) (max J - min J) < pi, and quickly well below pi. So for every image and unit, the pieces that
the unit's inputs can reach are listed once, each with its first cumulants. Then a short polynomial is evaluated for all inputs
of the unit at once. A piece that is too long for its series is cut, so there is no approximation beyond rounding. A line that
would need many pieces (in a very confident network) is followed input by input instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snipnb._engine.propagation import Flat, Gate, Mix, Norm, Scratch, Step

LONGEST = 0.5  # longest piece, times (max J - min J); the series converges below pi
MOST = 24  # pieces on one side of a line; a line with more pieces is followed input by input
LARGEST = 1e3  # largest slopes and changes; their powers stay far from overflow
ENTRIES = 2**22  # numbers in one table of (image, unit, following unit)
GROUP = 16  # inputs whose changes are bounded together
SMALLEST = 1e-30  # stands for 0 in a quotient


def cumulants(p: Tensor, values: Tensor, order: int) -> Tensor:
    """Cumulants kappa_1 to kappa_order of ``values`` under the probabilities ``p``.

    **Definition.** log sum_c p_c exp(t v_c) = sum_k kappa_k t^k / k!, by the recursion over the moments m_k = sum_c p_c v_c^k,
    kappa_k = m_k - sum_{i<k} binomial(k-1, i-1) kappa_i m_{k-i}.

    Args:
        p: Probabilities [..., classes].
        values: [..., classes].

    Returns:
        [order, ...].
    """
    moments, power = [], p
    for _ in range(order):
        power = power * values
        moments.append(power.sum(-1))
    found: list[Tensor] = []
    for k in range(1, order + 1):
        lower = [math.comb(k - 1, i - 1) * found[i - 1] * moments[k - i - 1] for i in range(1, k)]
        found.append(moments[k - 1] - sum(lower) if lower else moments[0])
    return torch.stack(found)


def loss_changes(dz: Tensor, log_p: Tensor, labels: Tensor) -> Tensor:
    """Change of the cross-entropy of each image for a change of its logits.

    **Definition.** log(sum_c p_c exp(dz_c)) - dz_y, computed as log1p(sum_{c != y} p_c expm1(dz_c - dz_y)): nothing cancels
    where the changes are small or p_y is close to 1. Where the loss falls far, or the sum overflows, the first form is used.

    Args:
        dz: Change of the logits [classes, parameters, images]; overwritten.
        log_p: Log-probabilities before the change [classes, images].
        labels: Classes [images].

    Returns:
        Loss changes [parameters, images].
    """
    own = labels[None, None].expand(1, dz.shape[1], -1)
    dz -= dz.gather(0, own)
    p = log_p.exp()[:, None]
    if float(dz.max()) > 20:  # where p may be too small for its dtype, and the exponential too large
        terms = torch.where(dz > 1, torch.exp(log_p[:, None] + dz) - p, p * torch.expm1(dz))
    else:
        terms = torch.expm1(dz).mul_(p)
    total = terms.sum(0)
    change = torch.log1p(total)
    lowest, highest = torch.aminmax(total)
    if not (float(lowest) > -0.5 and float(highest) < torch.finfo(dz.dtype).max):
        careful = torch.logsumexp(log_p[:, None] + dz, 0)
        change = torch.where((total > -0.5) & torch.isfinite(total), change, careful)
    return change


@dataclass
class Head:
    """What follows a linear layer, as matrices with a ReLU between neighbouring matrices."""

    scale: Tensor  # [units]: batch norms before the units' own ReLU
    gate: int | None  # index of that ReLU's step, if there is one
    matrices: list[Tensor]  # [hidden, units], ..., [classes, hidden]
    gates: list[int]  # indices of the steps of the ReLUs between the matrices

    @classmethod
    def after(cls, steps: Sequence[Step], k: int) -> Head | None:
        """The head that follows step k, or None if anything but linear layers, batch norms and ReLUs follows."""
        layer = steps[k]
        if not (isinstance(layer, Mix) and layer.is_linear_layer):
            return None
        scale = layer.weight.new_ones(layer.outputs)
        gate: int | None = None
        matrices: list[Tensor] = []
        gates: list[int] = []
        columns = scale
        matrix: Tensor | None = None  # what comes next: matrix (None: identity) times diag(columns)
        for index, step in enumerate(steps[k + 1 :], k + 1):
            if isinstance(step, Mix) and step.is_linear_layer:
                mixing = step.weight[:, 0]
                matrix = mixing * columns if matrix is None else mixing @ matrix
            elif isinstance(step, Norm):
                if matrix is not None:
                    matrix = step.scale[:, 0] * matrix
                elif gate is None and not gates:
                    scale = scale * step.scale[:, 0, 0]
                else:
                    columns = columns * step.scale[:, 0, 0]
            elif isinstance(step, Gate) and step.windows is None and step.relu:
                if matrix is None and (gate is not None or gates):
                    return None  # two ReLUs with only a batch norm between them
                if matrix is None:
                    gate = index
                else:
                    matrices.append(matrix)
                    gates.append(index)
                    columns, matrix = matrix.new_ones(len(matrix)), None
            elif not (isinstance(step, Flat) and step.positions == 1):
                return None
        return cls(scale, gate, [*matrices, torch.diag(columns) if matrix is None else matrix], gates)

    def slopes(self, first: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
        """How fast all hidden values move away from zero [rows, hidden in all], and the slopes of the logits [rows, classes].

        Args:
            first: Slopes of the first hidden values [rows, units].
            sides: 1 for hidden values above zero, -1 for the others [rows, hidden in all].
        """
        found, start, current = [], 0, first
        for matrix in self.matrices[1:]:
            found.append(current * sides[:, start : start + current.shape[1]])
            start += current.shape[1]
            current = (current + found[-1]) @ (matrix.T / 2)  # twice the slope above zero, none below
        return (found[0] if len(found) == 1 else torch.cat(found, 1) if found else first[:, :0]), current


@dataclass
class _Pieces:
    """Stretches of lines, each a polynomial in clamp(sign * change of the unit + shift, lower, upper)."""

    line: Tensor  # [pieces]
    unit: Tensor
    image: Tensor
    shift: Tensor
    lower: Tensor
    upper: Tensor
    coefficients: Tensor  # [order, pieces]
    length: Tensor  # length in use, times (max J - min J)

    def without(self, hard: Tensor) -> _Pieces:
        """The pieces that do not lie on a hard line."""
        keep = ~hard[self.line]
        return self if bool(keep.all()) else _Pieces(**{key: value[..., keep] for key, value in vars(self).items()})

    @classmethod
    def joined(cls, parts: Sequence[_Pieces]) -> _Pieces:
        """All pieces of several lists, unit by unit."""
        if len(parts) == 1:
            return parts[0]
        order = max(len(part.coefficients) for part in parts)
        for part in parts:
            more = part.coefficients.new_zeros(order - len(part.coefficients), len(part.unit))
            part.coefficients = torch.cat([part.coefficients, more])
        fields = {key: torch.cat([getattr(part, key) for part in parts], -1) for key in vars(parts[0])}
        by_unit = torch.argsort(fields["unit"], stable=True)
        return cls(**{key: value[..., by_unit] for key, value in fields.items()})

    def total(self, unit: slice, x: Tensor, factors: Tensor, scratch: Scratch) -> Tensor:
        """Sum over the pieces of one unit, [inputs]; ``factors`` is the sign times the factor of each input."""
        most = max(1, 4 * ENTRIES // x.shape[1])
        if unit.stop - unit.start > most:
            starts = range(unit.start, unit.stop, most)
            parts = [slice(start, min(start + most, unit.stop)) for start in starts]
            return torch.stack([self.total(part, x, factors, scratch) for part in parts]).sum(0)
        if unit.stop == unit.start:
            return torch.zeros_like(factors)
        shape = (unit.stop - unit.start, x.shape[1])
        d = torch.index_select(x, 0, self.image[unit], out=scratch.take(("d",), shape, x))
        torch.addcmul(self.shift[unit, None], d, factors, out=d)
        torch.maximum(d, self.lower[unit, None], out=d)
        torch.minimum(d, self.upper[unit, None], out=d)
        order = terms_for(float(self.length[unit].max()), d.dtype)
        highest, *others = self.coefficients[:order, unit, None].flip(0)
        total = torch.mul(d, highest, out=scratch.take(("total",), shape, x))  # Horner's rule, in place
        if others:
            total.add_(others[0])
        for coefficient in others[1:]:
            torch.addcmul(coefficient, total, d, out=total)
        return (total.mul_(d) if others else total).sum(0)


def terms_for(length: float, dtype: torch.dtype) -> int:
    """Number of terms with which the series reaches the precision of the dtype, for abs(change) (max J - min J) up to ``length``."""
    if length == 0:
        return 1
    return max(1, math.ceil(math.log(torch.finfo(dtype).eps / 8) / math.log(length / math.pi)))


def loss_changes_along_lines(
    x: Tensor,
    values: Mapping[int, Tensor],
    columns: Mapping[int, Tensor],
    head: Head,
    kept: Sequence[tuple[Tensor, ...]],
    logits: Tensor,
    labels: Tensor,
    sums: Tensor,
    scratch: Scratch,
) -> None:
    """For parameters of a linear layer, add the sum over images of the loss change when each parameter is set to zero.

    Args:
        x: What the parameters multiply [images, columns] (1 in the column of the bias).
        values: Unit -> its wanted parameters.
        columns: Unit -> the columns of x that they belong to.
        head: What follows the layer.
        kept: What each step of the network keeps of these images.
        logits: [classes, images].
        labels: [images].
        sums: [units, columns], float64; added to.
        scratch: Memory for temporaries.
    """
    hidden = [before_relu(kept[g]) for g in head.gates]
    own = None if head.gate is None else before_relu(kept[head.gate])
    width = len(values) * (sum(h.shape[1] for h in hidden) + 4 * len(logits))
    step = max(1, ENTRIES // width)
    factors = {u: -values[u] * head.scale[u] for u in values}
    found: dict[int, list[_Pieces]] = {0: [], 1: [], -1: []}
    for start in range(0, len(x), step):
        images = slice(start, start + step)
        part = [h[images] for h in hidden]
        before = None if own is None else own[images]
        lines = _Lines(x[images], factors, before, part, logits[:, images].T, labels[images], head)
        for side, pieces in lines.pieces():
            pieces.image += start
            found[side].append(pieces)
        for u, total in lines.followed(columns):
            sums[u].index_add_(0, columns[u], total)
    units = torch.arange(len(values) + 1, device=x.device)
    for side, some in found.items():
        if not some:
            continue
        pieces, sign = _Pieces.joined(some), side or 1
        borders = torch.searchsorted(pieces.unit, units).tolist()
        for i, u in enumerate(values):
            inputs = x if len(columns[u]) == x.shape[1] else x.index_select(1, columns[u])
            total = pieces.total(slice(borders[i], borders[i + 1]), inputs, sign * factors[u], scratch)
            sums[u].index_add_(0, columns[u], total.double())


def before_relu(kept: tuple[Tensor, ...]) -> Tensor:
    """The inputs of a ReLU [images, units], from what its step keeps."""
    gap, floor = kept
    return (gap - floor)[0, 0].T.contiguous()


class _Lines:
    """One line per image and unit: where its pieces begin and end, and the loss on each."""

    def __init__(
        self,
        x: Tensor,
        factors: dict[int, Tensor],
        own: Tensor | None,
        hidden: list[Tensor],
        logits: Tensor,
        labels: Tensor,
        head: Head,
    ) -> None:
        self.x, self.factors, self.head, self.logits, self.labels = x, factors, head, logits, labels
        self.units = torch.tensor(list(factors), device=x.device)
        low, high = _bounds(x, list(factors.values()))
        if own is None:
            shift, top = torch.zeros_like(low), torch.full_like(low, torch.inf)
        else:
            values = own[:, self.units].T
            shift, top = values.clamp(max=0), values.relu()
        low, high = torch.maximum(low + shift, -top), torch.maximum(high + shift, -top)
        unit, image = torch.nonzero((low < 0) | (high > 0), as_tuple=True)  # units that can change, unit by unit
        self.unit, self.image = unit, image
        self.low, self.high, self.shift, self.top = (t[unit, image] for t in (low, high, shift, top))
        self.first = head.matrices[0].T[self.units[unit]]  # slopes of the first hidden values [lines, hidden]
        self.hidden = hidden
        self.values = torch.cat(hidden, 1)[image] if hidden else self.first[:, :0]

    def pieces(self) -> list[tuple[int, _Pieces]]:
        """The pieces around the current point (0), above it (1) and below it (-1), each unit by unit."""
        sides = torch.where(self.values > 0, 1.0, -1.0)
        away, j = self.head.slopes(self.first, sides)
        margin = (self.values * sides).clamp_(min=SMALLEST)  # how far each hidden value is from zero
        rate = away / margin
        z = self.logits[self.image]
        longest = LONGEST / _spread(j)
        extent = torch.maximum(self.high, -self.low)
        self.hard = (extent > MOST * longest) | (extent > LARGEST) | (longest < LONGEST / LARGEST)
        above, below = longest, longest
        if rate.shape[1]:
            slowest, fastest = torch.aminmax(rate, dim=1)
            above, below = torch.minimum(_distance(slowest), longest), torch.minimum(_distance(-fastest), longest)
        around = self._make(
            torch.arange(len(self.unit), device=z.device),
            self.shift,
            torch.maximum(torch.where(below < -self.low, -below, -torch.inf), -self.top),
            torch.where(above < self.high, above, torch.inf),
            torch.maximum(torch.minimum(above, self.high), torch.minimum(below, -self.low)),
            z,
            j,
        )
        found = []
        for sign, end, reach in ((1, above, self.high), (-1, below, -self.low)):
            beyond = torch.nonzero((end < reach) & ~self.hard)[:, 0]
            if len(beyond):
                found.append((sign, self._walk(sign, beyond, end[beyond], reach[beyond], sides, margin, away, j, z)))
        return [(side, pieces.without(self.hard)) for side, pieces in [(0, around), *found]]

    def followed(self, columns: Mapping[int, Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Unit and sum of loss changes [inputs], for lines that need too many pieces: every input's change is propagated to the logits."""
        for i in self.unit[self.hard].unique().tolist():
            u = int(self.units[i])
            x = self.x if len(columns[u]) == self.x.shape[1] else self.x.index_select(1, columns[u])
            widest = max(len(matrix) for matrix in self.head.matrices) * x.shape[1]
            for line in torch.nonzero(self.hard & (self.unit == i))[:, 0].split(max(1, ENTRIES // widest)):
                image = self.image[line]
                d = torch.addcmul(self.shift[line, None], x[image], self.factors[u])
                d = torch.maximum(d, -self.top[line, None])[:, :, None] * self.first[line, None]
                for a, matrix in zip(self.hidden, self.head.matrices[1:], strict=True):
                    a = a[image, None]
                    d = torch.maximum(d + a.clamp(max=0), -a.relu()) @ matrix.T
                log_p = self.logits[image].log_softmax(1).T
                changes = loss_changes(d.permute(2, 1, 0).contiguous(), log_p, self.labels[image])
                yield u, changes.sum(1, dtype=torch.float64)

    def _walk(
        self,
        sign: int,
        line: Tensor,
        end: Tensor,
        reach: Tensor,
        sides: Tensor,
        margin: Tensor,
        away: Tensor,
        j: Tensor,
        z: Tensor,
    ) -> _Pieces:
        """All pieces on one side, found by going from switch to switch on all lines together."""
        first, sides, margin = sign * self.first[line], sides[line], margin[line]
        away, j, z = sign * away[line], sign * j[line], z[line]
        position, length, made = torch.zeros_like(end), end, []
        rate = away / margin
        while len(line):
            fastest, which = rate.min(1) if rate.shape[1] else (position, line)
            row = torch.nonzero(_distance(fastest) <= length)[:, 0]  # at a switch; else the piece was only cut
            position = position + length
            margin = torch.addcmul(margin, away, length[:, None]).clamp_(min=SMALLEST)
            z = torch.addcmul(z, j, length[:, None])
            sides[row, which[row]] *= -1
            margin[row, which[row]] = SMALLEST
            away, j = self.head.slopes(first, sides)
            rate, length = away / margin, LONGEST / _spread(j)
            self.hard[line[length < LONGEST / LARGEST]] = True
            if rate.shape[1]:
                length = torch.minimum(length, _distance(rate.amin(1)))
            last = position + length >= reach
            upper = torch.where(last, torch.inf, length)
            if sign < 0:  # the unit itself cannot fall below zero
                upper = torch.minimum(upper, self.top[line] - position)
            within = torch.minimum(length, reach - position)
            shift = sign * self.shift[line] - position
            made.append(self._make(line, shift, torch.zeros_like(upper), upper, within, z, j))
            if len(made) == MOST:
                self.hard[line[~last]] = True
            more = torch.nonzero(~last & ~self.hard[line])[:, 0]
            line, reach, position, length = (t[more] for t in (line, reach, position, length))
            first, sides, margin, away, j, rate, z = (t[more] for t in (first, sides, margin, away, j, rate, z))
        return _Pieces.joined(made)

    def _make(
        self, line: Tensor, shift: Tensor, lower: Tensor, upper: Tensor, used: Tensor, z: Tensor, j: Tensor
    ) -> _Pieces:
        length = (used * _spread(j)).clamp(max=LONGEST).nan_to_num(LONGEST)
        order = terms_for(float(length.max()), z.dtype) if len(line) else 1
        leader = j.gather(1, z.argmax(1, keepdim=True))  # relative to it, nothing cancels in the cumulants
        kappa = cumulants(z.softmax(1), j - leader, order)
        kappa[0] += (leader - j.gather(1, self.labels[self.image[line], None]))[:, 0]
        factorials = kappa.new_tensor([float(math.factorial(k)) for k in range(1, order + 1)])
        return _Pieces(
            line, self.unit[line], self.image[line], shift, lower, upper, kappa / factorials[:, None], length
        )


def _spread(j: Tensor) -> Tensor:
    """max J - min J, but never exactly 0."""
    low, high = j.aminmax(dim=1)
    return (high - low).clamp(min=SMALLEST)


def _distance(rate: Tensor) -> Tensor:
    """The distance to a switch that is approached at this relative rate; infinite if it is not approached."""
    return torch.where(rate < 0, -1 / rate, torch.inf)


def _bounds(x: Tensor, factors: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Bounds of 0 and of factor * x over the inputs of a unit: [units, images]. Groups of inputs give tighter bounds."""
    size = GROUP if all(len(f) == x.shape[1] for f in factors) else max(x.shape[1], *map(len, factors))
    ends = []
    for rows in (x, nn.utils.rnn.pad_sequence(factors, batch_first=True)):
        groups = F.pad(rows, (0, -rows.shape[1] % size)).unflatten(1, (-1, size))
        low, high = groups.aminmax(dim=2)
        ends.append((-low.clamp(max=0), high.clamp(min=0)))
    (x_low, x_high), (f_low, f_high) = ends
    f_low, f_high = f_low[:, None], f_high[:, None]
    high = torch.maximum((f_high * x_high).amax(2), (f_low * x_low).amax(2))
    return -torch.maximum((f_low * x_high).amax(2), (f_high * x_low).amax(2)), high
