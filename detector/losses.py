"""Losses: elementwise, unreduced, from logits.

Each is written so that it and its gradient, the modulating factor's included, stay finite for any finite logit.
Half-precision inputs are computed, and returned, in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.boxes import areas


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss, Eq. (5): -alpha_t (1 - p_t)^gamma log(p_t), shape of ``logits``.

    ``targets`` in {0, 1}, same shape or broadcast. Source: Lin et al., ICCV 2017.
    """
    logits, targets = _wide(logits), _wide(targets)
    wrong = logits * (1 - 2 * targets)  # logit of the wrong answer: p_t = sigmoid(-wrong)
    alpha_t = alpha * targets + (1 - alpha) * (1 - targets)
    return alpha_t * torch.exp(gamma * F.logsigmoid(wrong)) * F.softplus(wrong)


def quality_focal_loss(logits: Tensor, targets: Tensor, beta: float = 2.0) -> Tensor:
    """Quality focal loss, Eq. (6): |y - p|^beta times the cross-entropy of p with y, shape of ``logits``.

    ``targets`` in [0, 1], same shape or broadcast. Source: Li et al., Generalized Focal Loss, NeurIPS 2020.
    """
    logits, targets = _wide(logits), _wide(targets)
    return (targets - logits.sigmoid()).abs().pow(beta) * _cross_entropy(logits, targets)


def varifocal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """Varifocal loss, Eq. (7): q times the cross-entropy where q > 0, -alpha p^gamma log(1 - p) where q = 0.

    ``targets`` q in [0, 1], same shape or broadcast; a positive of IoU 0 counts as a negative.
    Source: Zhang et al., VarifocalNet, CVPR 2021.
    """
    logits, targets = _wide(logits), _wide(targets)
    negative = alpha * torch.exp(gamma * F.logsigmoid(logits)) * F.softplus(logits)
    return torch.where(targets > 0, targets * _cross_entropy(logits, targets), negative)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    # -y log(p) - (1 - y) log(1 - p) from logits; both terms stay positive, so nothing cancels.
    return targets * F.softplus(-logits) + (1 - targets) * F.softplus(logits)


def distribution_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Distribution focal loss: cross-entropy with the two bins around the target, weighted by nearness.

    ``logits`` (M, bins), ``targets`` (M,) in [0, bins - 1] -> (M,). Source: Li et al., NeurIPS 2020, Eq. (6) there.
    """
    logits, targets = _wide(logits), _wide(targets)
    left = targets.floor().clamp(0, logits.shape[-1] - 2)
    log_probabilities = F.log_softmax(logits, dim=-1)
    index = left.long()[:, None]
    at_left = log_probabilities.gather(1, index).squeeze(1)
    at_right = log_probabilities.gather(1, index + 1).squeeze(1)
    return -(left + 1 - targets) * at_left - (targets - left) * at_right


def giou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU of boxes (..., 4) xyxy with their counterparts -> (...,), between 0 and 2.

    Source: Rezatofighi et al., CVPR 2019. Empty unions and hulls count as IoU 0 without penalty.
    """
    predicted, target = _wide(predicted), _wide(target)
    tiny = torch.finfo(predicted.dtype).tiny
    width, height = (
        (torch.minimum(predicted[..., 2:], target[..., 2:]) - torch.maximum(predicted[..., :2], target[..., :2]))
        .clamp(min=0)
        .unbind(-1)
    )
    intersection = width * height
    union = areas(predicted) + areas(target) - intersection
    hull = torch.maximum(predicted[..., 2:], target[..., 2:]) - torch.minimum(predicted[..., :2], target[..., :2])
    hull_area = hull[..., 0] * hull[..., 1]
    return 1 - intersection / union.clamp(min=tiny) + (hull_area - union) / hull_area.clamp(min=tiny)
