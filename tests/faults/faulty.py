"""Plain ATSS that breaks its own training at a given step: a plug-in of the sweeps that test faults."""

import os

import torch

from detector.assigners import ATSSAssigner


def build_assigner(config):
    return Faulty(**config.options)


class Faulty:
    def __init__(self, fault="none", at=0.5, rank=0):
        self.plain = ATSSAssigner(9, 0.0, 1.0)
        self.fault, self.at, self.rank = fault, at, rank

    def __call__(self, anchors, level_shapes, gt_boxes, predicted_boxes=None, progress=0.0):
        found = self.plain(anchors, level_shapes, gt_boxes, predicted_boxes, progress)
        mine = int(os.environ.get("RANK", 0)) == self.rank
        if mine and progress >= self.at and self.fault != "none":
            getattr(self, self.fault)(gt_boxes)
        return found

    def nan(self, gt_boxes):
        # After the assignment, which would only find no anchor for such a box.
        for boxes in gt_boxes:
            boxes.fill_(float("nan"))

    def memory(self, gt_boxes):
        # As an allocator would that has room for one image.
        if len(gt_boxes) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def shape(self, gt_boxes):
        torch.zeros(2, 3) @ torch.zeros(2, 3)

    def full_disk(self, gt_boxes):
        import shutil

        def move(source, target):
            raise OSError(28, "No space left on device")

        shutil.move = move

    def read_only(self, gt_boxes):
        import shutil

        def move(source, target):
            raise OSError(30, "Read-only file system")

        shutil.move = move
