"""The losses of ATSS, GFL, GFLV2 and VFNet, anchor by anchor in float64, written from the papers' formulas.

They are differentiable, so that gradients have a witness too. Weights that the papers detach are detached here.
"""

from __future__ import annotations

import torch

from tests.detector.plain_atss import assign


def rows(levels, image):
    """Levels (N, D, H, W) -> the list of one image's (D,) vectors, in the order of the anchors."""
    return [level[image, :, y, x] for level in levels for y in range(level.shape[2]) for x in range(level.shape[3])]


def giou(a, b):
    x0, y0, x1, y1 = (torch.max(a[0], b[0]), torch.max(a[1], b[1]), torch.min(a[2], b[2]), torch.min(a[3], b[3]))
    overlap = (x1 - x0).clamp(min=0) * (y1 - y0).clamp(min=0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    width = torch.max(a[2], b[2]) - torch.min(a[0], b[0])
    height = torch.max(a[3], b[3]) - torch.min(a[1], b[1])
    return overlap / union - (width * height - union) / (width * height), overlap / union


def box_at(x, y, distances):
    return torch.stack((x - distances[0], y - distances[1], x + distances[2], y + distances[3]))


def entropy(p, target):
    return -target * torch.log(p) - (1 - target) * torch.log(1 - p)


def expectation(logits):
    """The mean of a distribution over 0 to 16, bin by bin."""
    p = torch.exp(logits) / torch.exp(logits).sum()
    return sum(k * p[k] for k in range(17)), p


def decoded(deltas, anchor):
    """The box of four deltas: offsets of the centre over the anchor's size and log ratios, times 10, 10, 5, 5."""
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x = (anchor[0] + anchor[2]) / 2 + deltas[0] / 10 * width
    y = (anchor[1] + anchor[3]) / 2 + deltas[1] / 10 * height
    half_width, half_height = torch.exp(deltas[2] / 5) * width / 2, torch.exp(deltas[3] / 5) * height / 2
    return torch.stack((x - half_width, y - half_height, x + half_width, y + half_height))


def atss(outputs, anchors, shapes, gt_boxes, gt_labels, wp, wa, *, loss, branch):
    cls = reg = quality_sum = torch.zeros((), dtype=torch.float64)
    positives, weight_sum = 0, 0.0
    for image, (boxes, labels) in enumerate(zip(gt_boxes, gt_labels, strict=True)):
        logits, raw = rows(outputs.class_logits, image), rows(outputs.box_regression, image)
        predicted = [decoded(deltas, anchor) for deltas, anchor in zip(raw, anchors, strict=True)]
        index, _ = assign(anchors, shapes, boxes.tolist(), [box.tolist() for box in predicted], wp, wa, 9)
        for a, g in enumerate(index):
            p = torch.sigmoid(logits[a])
            target = torch.zeros_like(p)
            if g >= 0:
                overlap, iou = giou(predicted[a], boxes[g])
                target[labels[g]] = 1.0 if loss == "focal" else iou.item()
                x, y = (anchors[a][0] + anchors[a][2]) / 2, (anchors[a][1] + anchors[a][3]) / 2
                left, top, right, bottom = x - boxes[g][0], y - boxes[g][1], boxes[g][2] - x, boxes[g][3] - y
                near = min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)
                weight = {"centerness": float(near) ** 0.5, "iou": iou.item(), "none": 1.0}[branch]
                positives, weight_sum = positives + 1, weight_sum + weight
                reg = reg + weight * (1 - overlap)
                if branch != "none":
                    q = torch.sigmoid(rows(outputs.quality_logits, image)[a][0])
                    quality_sum = quality_sum + entropy(q, weight)
            if loss == "focal":
                right = torch.where(target > 0, p, 1 - p)
                cls = cls - (torch.where(target > 0, 0.25, 0.75) * (1 - right) ** 2 * torch.log(right)).sum()
            elif loss == "qfl":
                cls = cls + ((target - p).abs() ** 2 * entropy(p, target)).sum()
            else:
                cls = cls + torch.where(target > 0, target * entropy(p, target), -0.75 * p**2 * torch.log(1 - p)).sum()
    losses = {"loss_cls": cls / max(1, positives), "loss_reg": 2.0 * reg / max(1.0, weight_sum)}
    return losses if branch == "none" else losses | {"loss_quality": quality_sum / max(1, positives)}


def gfl(outputs, anchors, strides, shapes, gt_boxes, gt_labels, wp, wa):
    cls = reg = dfl = torch.zeros((), dtype=torch.float64)
    positives, weight_sum = 0, 0.0
    for image, (boxes, labels) in enumerate(zip(gt_boxes, gt_labels, strict=True)):
        logits, raw = rows(outputs.class_logits, image), rows(outputs.box_regression, image)
        quality = None if outputs.quality_logits is None else rows(outputs.quality_logits, image)
        points = [((a[0] + a[2]) / 2, (a[1] + a[3]) / 2) for a in anchors]
        predicted = []
        for (x, y), stride, vector in zip(points, strides, raw, strict=True):
            sides = torch.stack([expectation(vector[17 * side : 17 * side + 17])[0] for side in range(4)])
            predicted.append(box_at(x, y, sides * stride))
        plain = [box.tolist() for box in predicted]
        index, _ = assign(anchors, shapes, boxes.tolist(), plain, wp, wa, 9)
        for a, g in enumerate(index):
            p = torch.sigmoid(logits[a])
            p = p if quality is None else p * torch.sigmoid(quality[a])
            target = torch.zeros_like(p)
            if g >= 0:
                overlap, iou = giou(predicted[a], boxes[g])
                target[labels[g]] = iou.detach()
                weight = p.max().item()
                positives, weight_sum = positives + 1, weight_sum + weight
                reg = reg + weight * (1 - overlap)
                x, y = points[a]
                wanted = (x - boxes[g][0], y - boxes[g][1], boxes[g][2] - x, boxes[g][3] - y)
                for side in range(4):
                    t = min(max(float(wanted[side]) / strides[a], 0.0), 15.9)
                    probability = expectation(raw[a][17 * side : 17 * side + 17])[1]
                    left = int(t)
                    near = (left + 1 - t) * torch.log(probability[left])
                    dfl = dfl - weight * (near + (t - left) * torch.log(probability[left + 1])) / 4
            cls = cls + ((target - p).abs() ** 2 * entropy(p, target)).sum()
    return {
        "loss_cls": cls / max(1, positives),
        "loss_reg": 2.0 * reg / max(1.0, weight_sum),
        "loss_dfl": 0.25 * dfl / max(1.0, weight_sum),
    }


def vfnet(outputs, anchors, shapes, gt_boxes, gt_labels, wp, wa, seen):
    cls = refined_sum = initial_sum = torch.zeros((), dtype=torch.float64)
    positives, refined_weight, initial_weight = 0, 0.0, 0.0
    for image, (boxes, labels) in enumerate(zip(gt_boxes, gt_labels, strict=True)):
        logits = rows(outputs.class_logits, image)
        points = [((a[0] + a[2]) / 2, (a[1] + a[3]) / 2) for a in anchors]
        refined = [box_at(*p, d) for p, d in zip(points, rows(outputs.box_regression, image), strict=True)]
        initial = [box_at(*p, d) for p, d in zip(points, rows(outputs.initial_regression, image), strict=True)]
        plain = [box.tolist() for box in (refined if seen == "refined" else initial)]
        index, _ = assign(anchors, shapes, boxes.tolist(), plain, wp, wa, 9)
        for a, g in enumerate(index):
            p = torch.sigmoid(logits[a])
            target = torch.zeros_like(p)
            if g >= 0:
                overlap, iou = giou(refined[a], boxes[g])
                first_overlap, first_iou = giou(initial[a], boxes[g])
                target[labels[g]] = iou.detach()
                positives += 1
                refined_weight, initial_weight = refined_weight + iou.item(), initial_weight + first_iou.item()
                refined_sum = refined_sum + iou.item() * (1 - overlap)
                initial_sum = initial_sum + first_iou.item() * (1 - first_overlap)
            negative = -0.75 * p**2 * torch.log(1 - p)
            cls = cls + torch.where(target > 0, target * entropy(p, target), negative).sum()
    return {
        "loss_cls": cls / max(1, positives),
        "loss_reg": 2.0 * refined_sum / max(1.0, refined_weight),
        "loss_reg_initial": 1.5 * initial_sum / max(1.0, initial_weight),
    }
