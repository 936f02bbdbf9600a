"""The cross-entropy along a line: its change, its derivatives, and the terms of their series.

Where the logits are affine in a parameter, with slopes J, the change of the loss is the cumulant generating function of J under the
softmax, minus the slope of the label's logit. So the derivatives of the loss are cumulants.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


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


def derivatives_of(p: Tensor, labels: Tensor, slopes: Tensor, order: int) -> list[Tensor]:
    """Derivatives of the cross-entropy along parameters from slopes [images, classes, parameters] relative to the top class.

    **Definition.** The recursion kappa_k = m_k - sum_{i=2..k-2} binomial(k-1, i-1) kappa_i m_{k-i} over the central moments m of the slopes.
    The first derivative is the mean slope minus the label's slope. Only the classes other than the top class contribute to the mean, so
    it keeps its digits in a confident network.

    Returns:
        Tensors [images, parameters], the first order first.
    """
    p = p[:, :, None]
    mean = (slopes * p).sum(1)
    own = slopes.gather(1, labels[:, None, None].expand(-1, 1, slopes.shape[2]))[:, 0]
    found, moments = [mean - own], [torch.ones_like(mean), torch.zeros_like(mean)]
    centred = slopes - mean[:, None]
    power = centred * p
    for k in range(2, order + 1):
        power = power * centred
        moments.append(power.sum(1))
        lower = [math.comb(k - 1, i - 1) * found[i - 1] * moments[k - i] for i in range(2, k - 1)]
        found.append(moments[k] - sum(lower) if lower else moments[k])
    return found


def terms_for(length: float, dtype: torch.dtype) -> int:
    """Number of terms with which the series reaches the precision of the dtype, for abs(change) (max J - min J) up to ``length``."""
    return max(1, math.ceil(math.log(torch.finfo(dtype).eps / 8) / math.log(length / math.pi)))
