"""Pasted masks and their run-length codes, on each backend that runs on a CPU here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image

from instseg.ops import available_backends, masks_to_rle, paste_masks, rle, use_backend
from instseg.ops._torch import paste as torch_paste
from tests.contracts import reference

BACKENDS = [b for b in available_backends("cpu") if b in ("torch", "ext")]
# An array with a byte for each of its pixels would hold 4 GB.
HUGE = (65535, 65535)


def every_backend(test):
    return pytest.mark.parametrize("backend", BACKENDS)(test)


def encoded(pasted: torch.Tensor, threshold: float) -> list[dict]:
    pixels = (pasted > threshold).numpy().astype(np.uint8)
    return [coco_mask.encode(np.asfortranarray(page)) for page in pixels]


def smooth(n: int, side: int, seed: int) -> torch.Tensor:
    noise = torch.rand(n, side + 4, side + 4, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise[:, None], 5, 1)[:, 0]


def flags(n: int, side: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 3, (n, side, side), generator=generator) / 2


def noise(n: int, side: int, seed: int) -> torch.Tensor:
    return torch.rand(n, side, side, generator=torch.Generator().manual_seed(seed))


# Corners within, around and far from an image of some dozen pixels, whole and half ones too.
CORNERS = st.one_of(
    st.floats(-30, 70, width=32),
    st.integers(-60, 140).map(lambda twice: twice / 2),
    st.sampled_from([-3e38, -1e12, -1e5, 1e-30, 1e5, 1e12, 3e38]),
)
LENGTHS = st.one_of(
    st.floats(-2, 80, width=32), st.integers(0, 60), st.sampled_from([0.0, 1e-5, 1e5, 1e12])
)


@st.composite
def box_lists(draw):
    n = draw(st.integers(0, 4))
    rows = [[draw(CORNERS), draw(CORNERS), draw(LENGTHS), draw(LENGTHS)] for _ in range(n)]
    made = torch.tensor(rows, dtype=torch.float32).reshape(n, 4)
    made[:, 2:] += made[:, :2]
    return made


@every_backend
@pytest.mark.parametrize("aligned", [True, False])
@settings(max_examples=100, deadline=None)
@given(
    boxes=box_lists(),
    make=st.sampled_from([smooth, flags, noise]),
    side=st.integers(1, 30),
    seed=st.integers(0, 1000),
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    threshold=st.sampled_from([0.0, 0.25, 0.4, 0.5, 1.0]),
)
def test_codes_are_those_of_the_pasted_masks(
    backend, aligned, boxes, make, side, seed, height, width, threshold
):
    probs, size = make(len(boxes), side, seed), (height, width)
    with use_backend(backend):
        got = masks_to_rle(probs, boxes, size, threshold=threshold, aligned=aligned)
    assert got == encoded(paste_masks(probs, boxes, size, aligned=aligned), threshold)


@every_backend
def test_codes_of_a_hand_worked_mask(backend):
    probs, boxes = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]), torch.tensor([[1.0, 0.0, 5.0, 4.0]])
    # Cells of two pixels: what each of four pixels takes of the two cells.
    shares = torch.tensor([[0.75, 0], [0.75, 0.25], [0.25, 0.75], [0, 0.75]])
    values = shares @ probs[0] @ shares.T
    assert torch.equal(paste_masks(probs, boxes, (4, 6))[0], F.pad(values, (1, 1)))
    with use_backend(backend):
        (code,) = masks_to_rle(probs, boxes, (4, 6))
    # Columns 1 and 2 are on, and the lower halves of columns 3 and 4.
    assert rle.decode_counts(code["counts"]).tolist() == [4, 8, 2, 2, 2, 2, 4]


@settings(max_examples=50, deadline=None)
@given(
    st.floats(-10, 25, width=32),
    st.floats(-10, 25, width=32),
    st.floats(0.5, 40, width=32),
    st.floats(0.5, 40, width=32),
    st.integers(1, 9),
)
def test_aligned_rule_is_its_definition(x, y, width, height, side):
    box = torch.tensor([[x, y, x + width, y + height]])
    mask = noise(1, side, 3)
    wanted = reference.paste(mask[0].double().numpy(), box[0].double().numpy(), (15, 20))
    assert np.allclose(paste_masks(mask, box, (15, 20))[0].numpy(), wanted, atol=1e-4)
    in_double = paste_masks(mask.double(), box.double(), (15, 20))
    assert in_double.dtype == torch.float64
    assert np.allclose(in_double[0].numpy(), wanted, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-20, 33, width=32),
    st.floats(-20, 28, width=32),
    st.floats(0, 50, width=32),
    st.floats(0, 50, width=32),
    st.integers(1, 30),
)
def test_other_rule_is_torchvisions(x, y, width, height, side):
    assume(x + width >= 1 and y + height >= 1)  # torchvision fails on boxes outside the image
    box, mask = torch.tensor([[x, y, x + width, y + height]]), noise(1, side, 4)
    wanted = paste_masks_in_image(mask[:, None], box, (30, 35))[:, 0]
    got = paste_masks(mask, box, (30, 35), aligned=False)
    assert torch.allclose(got, wanted, atol=1e-5)


@given(st.integers(1, 49), st.integers(-60, 60), st.integers(-60, 60), st.integers(0, 100))
def test_paste_then_crop_returns_the_mask(side, left, top, seed):
    mask = noise(1, side, seed)
    box = torch.tensor([[left, top, left + side, top + side]], dtype=torch.float32)
    canvas = F.pad(paste_masks(mask, box, (40, 50)), (70, 120, 70, 120))
    whole = torch.zeros_like(canvas)
    whole[:, top + 70 : top + 70 + side, left + 70 : left + 70 + side] = mask
    inside = torch.zeros_like(canvas)
    inside[:, 70:110, 70:120] = 1
    assert torch.equal(canvas, whole * inside)


@every_backend
@pytest.mark.parametrize("aligned", [True, False])
def test_huge_images_cost_nothing(backend, aligned):
    probs = torch.ones(3, 10, 10)
    boxes = torch.tensor(
        [[7.0, 3, 27, 13], [65500, 65000, 65600, 65700], [65520, -5, 65540, 70000]]
    )
    with use_backend(backend):
        codes = masks_to_rle(probs, boxes, HUGE, aligned=aligned)
    for code in codes:
        assert code["size"] == list(HUGE)
        assert rle.decode_counts(code["counts"]).sum() == HUGE[0] * HUGE[1]
    alone = encoded(paste_masks(probs[:1], boxes[:1], (40, 50), aligned=aligned), 0.5)
    assert rle.to_box(codes[0]) == rle.to_box(alone[0])
    assert rle.area(codes[0]) == rle.area(alone[0])
    assert [rle.to_box(code)[2:] for code in codes[1:]] == [HUGE, HUGE]


def test_strips_of_a_large_patch_join(monkeypatch):
    boxes = torch.tensor([[-3.0, -4.0, 43.0, 39.0], [2.0, 3.0, 30.0, 20.0]])
    probs = noise(2, 9, 1)
    with use_backend("torch"):
        whole = masks_to_rle(probs, boxes, (30, 40))
        monkeypatch.setattr(torch_paste, "_STRIP", 100)
        assert masks_to_rle(probs, boxes, (30, 40)) == whole


@every_backend
def test_other_dtypes_layouts_and_threads(backend):
    probs, boxes = smooth(5, 12, 2), torch.rand(5, 4) * 10 + torch.tensor([0, 0, 20, 20])
    with use_backend(backend):
        wanted = masks_to_rle(probs, boxes, (40, 40))
        assert masks_to_rle(probs.mT.contiguous().mT, boxes.T.contiguous().T, (40, 40)) == wanted
        assert masks_to_rle(probs.double(), boxes.double(), (40, 40)) == wanted
        half = masks_to_rle(probs.half(), boxes, (40, 40))
        assert half == masks_to_rle(probs.half().float(), boxes, (40, 40))
        assert masks_to_rle(probs.requires_grad_(), boxes, (40, 40)) == wanted
        threads = torch.get_num_threads()
        torch.set_num_threads(3)
        try:
            assert masks_to_rle(probs, boxes, (40, 40)) == wanted
        finally:
            torch.set_num_threads(threads)
    assert paste_masks(probs.half(), boxes, (40, 40)).dtype == torch.float16


@every_backend
def test_values_that_are_no_numbers_are_off(backend):
    probs, boxes = noise(1, 8, 5), torch.tensor([[2.0, 2.0, 30.0, 25.0]])
    probs[0, 3, 4], probs[0, 6, 1] = float("nan"), float("inf")
    with use_backend(backend):
        got = masks_to_rle(probs, boxes, (30, 30))
    assert got == encoded(paste_masks(probs, boxes, (30, 30)), 0.5)


def test_paste_compiles_and_has_a_fake():
    probs, boxes = noise(3, 6, 6), torch.tensor([[1.0, 2, 9, 8]]).expand(3, 4)
    torch.library.opcheck(torch.ops.instseg.paste_masks, (probs, boxes, 12, 14, True))
    compiled = torch.compile(paste_masks, backend="eager", fullgraph=True)
    assert torch.equal(compiled(probs, boxes, (12, 14)), paste_masks(probs, boxes, (12, 14)))


PROBS, BOXES = torch.zeros(2, 4, 4), torch.tensor([[0.0, 0, 3, 3], [1, 1, 2, 2]])
BAD = [
    ((PROBS[0], BOXES, (5, 5)), ValueError, r"probs must be \[N, M, M\].*got \[4, 4\]"),
    ((PROBS[:, :3], BOXES, (5, 5)), ValueError, r"probs must be \[N, M, M\].*got \[2, 3, 4\]"),
    ((PROBS[:, :0, :0], BOXES, (5, 5)), ValueError, r"M at least 1, got \[2, 0, 0\]"),
    ((PROBS.long(), BOXES, (5, 5)), TypeError, r"probs must be a floating.*got torch.int64"),
    ((PROBS, BOXES[:, :3], (5, 5)), ValueError, r"boxes must be \[N, 4\], got \[2, 3\]"),
    ((PROBS, BOXES[:1], (5, 5)), ValueError, r"boxes must be \[2, 4\], got \[1, 4\]"),
    ((PROBS, BOXES.int(), (5, 5)), TypeError, r"boxes must be a floating.*got torch.int32"),
    ((PROBS, BOXES, (0, 5)), ValueError, r"image_size must be at least 1, got \(0, 5\)"),
    ((PROBS, BOXES, (5.0, 5)), TypeError, r"image_size must be .* got \(5.0, 5\)"),
    ((PROBS, BOXES * float("nan"), (5, 5)), ValueError, "boxes must be finite, row 0"),
    ((PROBS, BOXES / BOXES[:, :1], (5, 5)), ValueError, "boxes must be finite, row 0"),
    ((PROBS.to("meta"), BOXES, (5, 5)), ValueError, "boxes must be on the device of probs, meta"),
]


@every_backend
@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_input_is_named(backend, arguments, error, message):
    with use_backend(backend):
        with pytest.raises(error, match=message):
            masks_to_rle(*arguments)
        with pytest.raises(error, match=message):
            paste_masks(*arguments)


@every_backend
def test_bad_thresholds_and_images_are_named(backend):
    with use_backend(backend):
        for threshold in (-0.1, 1.5, float("nan")):
            with pytest.raises(
                ValueError, match=rf"threshold must be in \[0, 1\], got {threshold}"
            ):
                masks_to_rle(PROBS, BOXES, (5, 5), threshold=threshold)
        with pytest.raises(ValueError, match=r"less than 2\^32 pixels, got \(65536, 65536\)"):
            masks_to_rle(PROBS, BOXES, (65536, 65536))


@pytest.mark.gpu
@pytest.mark.parametrize("aligned", [True, False])
def test_a_gpu_agrees_to_the_last_bit(aligned):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    probs, boxes = noise(20, 28, 8), torch.rand(20, 4) * 100
    boxes[:, 2:] += boxes[:, :2]
    wanted = paste_masks(probs, boxes, (150, 160), aligned=aligned)
    got = paste_masks(probs.cuda(), boxes.cuda(), (150, 160), aligned=aligned)
    assert torch.equal(got.cpu(), wanted)
    codes = masks_to_rle(probs.cuda(), boxes.cuda(), (150, 160), aligned=aligned)
    assert codes == encoded(wanted, 0.5)
