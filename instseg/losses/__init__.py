"""Losses: pure functions of tensors."""

from instseg.losses.rcnn import box_losses, mask_loss, rpn_losses

__all__ = ["box_losses", "mask_loss", "rpn_losses"]
