"""Other projects' networks, built from torch's own modules under those projects' names: the witnesses of the layouts.

Written from the published configurations and descriptions; tensors are random, with statistics that keep activations
of the order of one, so that an epsilon, a stride or a ReLU in the wrong place shows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import deform_conv2d

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STRIDES = (8, 16, 32, 64, 128)
# Deviations in batch norms are about this, so that an epsilon counts; the factors make up for it.
SMALL = 0.03


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random tensors everywhere: convolutions that keep the variance, statistics and factors about one."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith(("num_batches_tracked", "project")) or "cell_anchors" in name:
            continue
        draw = torch.rand(tensor.shape, generator=generator)
        if "offset" in name:
            value = (draw - 0.5) * (0.1 if tensor.ndim == 4 else 1.0)
        elif tensor.ndim == 4:
            value = (draw - 0.5) * (12 / tensor[0].numel()) ** 0.5
        elif name.endswith("running_var"):
            value = SMALL**2 * (0.5 + draw)
        elif name.endswith("scale"):
            value = 0.5 + draw
        elif name.endswith("weight"):
            value = 0.3 + 0.3 * draw if ".bn3." in name else 0.7 + 0.6 * draw
            value = SMALL * value if "bn" in name or "downsample" in name else value
        else:
            value = draw - 0.5
        tensor.copy_(value)
    return network.eval()


class Deformable(nn.Module):
    """A 3x3 deformable convolution that predicts its points under the name ``offset``, 18 or 27 channels."""

    def __init__(
        self, channels: int, *, stride=1, groups=1, modulated=True, bias=False, offset="conv_offset", conv=None
    ):
        super().__init__()
        self.stride, self.modulated, self.names = stride, modulated, (offset, conv)
        self.add_module(offset, nn.Conv2d(channels, 27 if modulated else 18, 3, stride=stride, padding=1))
        holder = self
        if conv is not None:
            holder = nn.Module()
            self.add_module(conv, holder)
        holder.weight = nn.Parameter(torch.zeros(channels, channels // groups, 3, 3))
        if bias:
            holder.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        offset, conv = self.names
        predicted = getattr(self, offset)(x)
        holder = self if conv is None else getattr(self, conv)
        mask = predicted[:, 18:].sigmoid() if self.modulated else None
        return deform_conv2d(
            x, predicted[:, :18], holder.weight, getattr(holder, "bias", None), self.stride, padding=1, mask=mask
        )


def resnet(depth: int, groups: int = 1, width: int = 64, *, dcn_stages=(), norm=nn.BatchNorm2d, **deformable) -> ResNet:
    """torchvision's ResNet without its classifier, with deformable 3x3 convolutions in ``dcn_stages``."""
    network = ResNet(Bottleneck, list(DEPTHS[depth]), groups=groups, width_per_group=width, norm_layer=norm)
    del network.fc, network.avgpool
    for stage in dcn_stages:
        for block in getattr(network, f"layer{stage - 1}"):
            conv = block.conv2
            block.conv2 = Deformable(conv.in_channels, stride=conv.stride[0], groups=conv.groups, **deformable)
    return network


def features(body: nn.Module, stem, images: Tensor) -> list[Tensor]:
    """C3 to C5."""
    x = F.max_pool2d(F.relu(stem.bn1(stem.conv1(images))), 3, 2, 1)
    found = []
    for number in range(1, 5):
        x = getattr(body, f"layer{number}")(x)
        found.append(x)
    return found[1:]


def pyramid(laterals, outputs, p6, p7, inputs: list[Tensor], relu: bool) -> list[Tensor]:
    """P3 to P7."""
    merged = [lateral(x) for lateral, x in zip(laterals, inputs, strict=True)]
    merged[1] = merged[1] + F.interpolate(merged[2], scale_factor=2, mode="nearest")
    merged[0] = merged[0] + F.interpolate(merged[1], scale_factor=2, mode="nearest")
    levels = [output(x) for output, x in zip(outputs, merged, strict=True)]
    levels.append(p6(levels[-1]))
    levels.append(p7(F.relu(levels[-1]) if relu else levels[-1]))
    return levels


class Scale(nn.Module):
    def __init__(self, shape=()):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(shape))


class ConvModule(nn.Module):
    """mmdetection's: a convolution, and in a tower GroupNorm and ReLU."""

    def __init__(self, conv: nn.Module, norm: bool = True):
        super().__init__()
        self.conv = conv
        if norm:
            self.gn = nn.GroupNorm(32, 256)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.gn(self.conv(x))) if hasattr(self, "gn") else self.conv(x)


def conv3(inputs=256, outputs=256, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class MMDetection(nn.Module):
    """mmdetection's ATSS, GFL or VFNet, or GFLV2 of GFocalV2."""

    def __init__(self, head: str, depth=50, groups=1, width=64, *, classes=80, dcn_stages=(), modulated=True):
        super().__init__()
        self.kind = head
        self.backbone = resnet(depth, groups, width, dcn_stages=dcn_stages, modulated=modulated)
        self.neck = nn.Module()
        self.neck.lateral_convs = nn.ModuleList(ConvModule(nn.Conv2d(c, 256, 1), False) for c in (512, 1024, 2048))
        extra = [ConvModule(conv3(stride=2), False) for _ in range(2)]
        self.neck.fpn_convs = nn.ModuleList([*(ConvModule(conv3(), False) for _ in range(3)), *extra])
        self.bbox_head = h = nn.Module()
        depth = 3 if head == "vfnet" else 4
        on_last = head == "vfnet" and bool(dcn_stages)
        for name in ("cls_convs", "reg_convs"):
            tower = [ConvModule(conv3(bias=False)) for _ in range(depth)]
            if on_last:
                tower[-1] = ConvModule(Deformable(256))
            h.add_module(name, nn.ModuleList(tower))
        h.scales = nn.ModuleList(Scale() for _ in STRIDES)
        if head == "atss":
            h.atss_cls, h.atss_reg, h.atss_centerness = conv3(256, classes), conv3(256, 4), conv3(256, 1)
        elif head in ("gfl", "gflv2"):
            h.gfl_cls, h.gfl_reg = conv3(256, classes + (head == "gflv2")), conv3(256, 68)
            h.integral = nn.Module()
            h.integral.register_buffer("project", torch.linspace(0, 16, 17))
            if head == "gflv2":
                h.reg_conf = nn.Sequential(nn.Conv2d(20, 64, 1), nn.ReLU(), nn.Conv2d(64, 1, 1), nn.Sigmoid())
        else:
            h.vfnet_reg_conv, h.vfnet_reg = ConvModule(conv3(bias=False)), conv3(256, 4)
            h.vfnet_reg_refine_dconv, h.vfnet_cls_dconv = conv3(bias=False), conv3(bias=False)
            h.vfnet_reg_refine, h.vfnet_cls = conv3(256, 4), conv3(256, classes)
            h.scales_refine = nn.ModuleList(Scale() for _ in STRIDES)

    def forward(self, images: Tensor) -> tuple[list, list, list | None]:
        inputs = features(self.backbone, self.backbone, images)
        n = self.neck
        levels = pyramid(n.lateral_convs, n.fpn_convs[:3], *n.fpn_convs[3:], inputs, self.kind == "vfnet")
        found = [self.head(level, number) for number, level in enumerate(levels)]
        classes, boxes, quality = (list(each) for each in zip(*found, strict=True))
        return classes, boxes, None if quality[0] is None else quality

    def head(self, x: Tensor, level: int):
        h, cls, reg = self.bbox_head, x, x
        for one, other in zip(h.cls_convs, h.reg_convs, strict=True):
            cls, reg = one(cls), other(reg)
        scale = h.scales[level].scale
        if self.kind == "atss":
            return h.atss_cls(cls), h.atss_reg(reg) * scale, h.atss_centerness(reg)
        if self.kind == "gfl":
            return h.gfl_cls(cls), h.gfl_reg(reg) * scale, None
        if self.kind == "gflv2":
            boxes = h.gfl_reg(reg) * scale
            n, _, height, width = boxes.shape
            top = boxes.reshape(n, 4, 17, height, width).softmax(2).topk(4, dim=2)[0]
            statistics = torch.cat((top, top.mean(2, keepdim=True)), 2).reshape(n, 20, height, width)
            return h.gfl_cls(cls), boxes, h.reg_conf(statistics)
        first = (h.vfnet_reg(h.vfnet_reg_conv(reg)) * scale).exp() * (64, 128, 256, 512, 1024)[level]
        offset = star(first / STRIDES[level])
        reg = F.relu(deform_conv2d(reg, offset, h.vfnet_reg_refine_dconv.weight, padding=1))
        refined = (h.vfnet_reg_refine(reg) * h.scales_refine[level].scale).exp() * first
        cls = F.relu(deform_conv2d(cls, offset, h.vfnet_cls_dconv.weight, padding=1))
        return h.vfnet_cls(cls), refined, None


def star(distances: Tensor) -> Tensor:
    """How far each point of a 3x3 kernel lies from where a box's nine points are: y and x in turn, row by row."""
    left, top, right, bottom = distances.unbind(1)
    moved = {0: -top, 1: -left, 2: -top, 4: -top, 5: right, 7: -left, 11: right, 12: bottom, 13: -left, 14: bottom}
    moved |= {16: bottom, 17: right}
    kernel = [value for y in (-1.0, 0.0, 1.0) for x in (-1.0, 0.0, 1.0) for value in (y, x)]
    return torch.stack([moved.get(n, torch.zeros_like(left)) - kernel[n] for n in range(18)], 1)


class FixedNorm(nn.Module):
    """maskrcnn-benchmark's frozen batch norm, which has no epsilon."""

    def __init__(self, channels: int):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        factor = self.weight / self.running_var.sqrt()
        return x * factor[:, None, None] + (self.bias - self.running_mean * factor)[:, None, None]


class OriginalATSS(nn.Module):
    """ATSS, or Dynamic ATSS, on maskrcnn-benchmark."""

    def __init__(self, depth=50, groups=1, width=64, *, classes=80, dcn_stages=(), stride_in_1x1=True):
        super().__init__()
        body = resnet(
            depth, groups, width, dcn_stages=dcn_stages, norm=FixedNorm, offset="offset", conv="conv"
        )  # fmt: skip
        if stride_in_1x1:
            for layer in (body.layer2, body.layer3, body.layer4):
                first = layer[0]
                first.conv1.stride, first.conv2.stride = (2, 2), 1 if dcn_stages else (1, 1)
                if isinstance(first.conv2, Deformable):
                    first.conv2.offset.stride = (1, 1)
        stem = nn.Module()
        stem.conv1, stem.bn1 = body.conv1, body.bn1
        del body.conv1, body.bn1
        body.stem = stem
        self.backbone = nn.Module()
        self.backbone.body = body
        self.backbone.fpn = fpn = nn.Module()
        for number, channels in ((2, 512), (3, 1024), (4, 2048)):
            fpn.add_module(f"fpn_inner{number}", nn.Conv2d(channels, 256, 1))
            fpn.add_module(f"fpn_layer{number}", conv3())
        fpn.top_blocks = nn.Module()
        fpn.top_blocks.p6, fpn.top_blocks.p7 = conv3(stride=2), conv3(stride=2)
        self.rpn = nn.Module()
        self.rpn.head = h = nn.Module()
        for name in ("cls_tower", "bbox_tower"):
            tower: list[nn.Module] = []
            for number in range(4):
                deformable = bool(dcn_stages) and number == 3
                tower.append(Deformable(256, bias=True, offset="offset", conv="conv") if deformable else conv3())
                tower += [nn.GroupNorm(32, 256), nn.ReLU()]
            h.add_module(name, nn.Sequential(*tower))
        h.cls_logits, h.bbox_pred, h.centerness = conv3(256, classes), conv3(256, 4), conv3(256, 1)
        h.scales = nn.ModuleList(Scale((1,)) for _ in STRIDES)
        self.rpn.anchor_generator = nn.Module()
        self.rpn.anchor_generator.cell_anchors = cells = nn.Module()
        for number, stride in enumerate(STRIDES):
            # Sides of 8 strides, told as 8 strides minus one pixel, about the middle of the first cell.
            cells.register_buffer(str(number), torch.tensor([[-3.5, -3.5, 4.5, 4.5]]) * stride)
            cells._buffers[str(number)] += torch.tensor([0.5, 0.5, -0.5, -0.5])

    def forward(self, images: Tensor) -> tuple[list, list, list]:
        body, fpn, h = self.backbone.body, self.backbone.fpn, self.rpn.head
        inner, layer = ([getattr(fpn, f"{kind}{n}") for n in (2, 3, 4)] for kind in ("fpn_inner", "fpn_layer"))
        levels = pyramid(inner, layer, fpn.top_blocks.p6, fpn.top_blocks.p7, features(body, body.stem, images), True)
        boxes = [h.bbox_tower(level) for level in levels]
        regression = [h.bbox_pred(x) * h.scales[number].scale for number, x in enumerate(boxes)]
        return [h.cls_logits(h.cls_tower(x)) for x in levels], regression, [h.centerness(x) for x in boxes]
