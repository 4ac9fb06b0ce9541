"""The same model on a GPU and on a CPU."""

from __future__ import annotations

import pytest
import torch

from instseg.models.detection import mask_rcnn_resnet50_fpn
from instseg.structures import Instances, SparseMasks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def picture() -> torch.Tensor:
    return torch.randint(0, 256, (3, 128, 160), dtype=torch.uint8)


@torch.inference_mode()
def test_detections_equal_those_of_the_cpu():
    model = mask_rcnn_resnet50_fpn(3).eval()
    model.box_head.score_threshold = 0.2
    image = picture()
    (on_cpu,) = model([image])
    (on_gpu,) = model.cuda()([image])
    assert on_gpu.boxes.is_cuda
    found = on_gpu.to("cpu")
    assert len(found) == len(on_cpu)
    assert torch.allclose(found.boxes, on_cpu.boxes, atol=1e-2)
    assert torch.allclose(found.scores, on_cpu.scores, atol=1e-4)


def test_a_training_step_with_targets_on_the_cpu():
    model = mask_rcnn_resnet50_fpn(3).cuda().train()
    corners = torch.tensor([[20.0, 20], [90, 20], [90, 100], [20, 100]]).double().numpy()
    size = (128, 160)
    target = Instances(
        size,
        torch.tensor([[20.0, 20, 90, 100]]),
        torch.tensor([1]),
        masks=SparseMasks([[corners]], size, size),
    )
    with torch.autocast("cuda", torch.bfloat16):
        losses = model([picture()], [target])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
