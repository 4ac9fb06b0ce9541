"""Images of other than three channels, and of 16 bits: every transform works on them, or says no.

What a transform does to RGB images of 8 bits is tested elsewhere. Here the same draws on other
images have to give the same channels, the same intensities and the same objects.
"""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from instseg.data.transforms import (
    Compose,
    ElasticDeformation,
    Expand,
    HsvJitter,
    IntensityJitter,
    IoUCrop,
    LargeScaleJitter,
    Letterbox,
    MixTransform,
    MixUp,
    Mosaic,
    RandomCrop,
    RandomHorizontalFlip,
    RandomRotation90,
    RandomVerticalFlip,
    RandomWindow,
    Resize,
    ResizeShortestEdge,
    SimpleCopyPaste,
)
from instseg.data.transforms.color import PhotometricDistort
from instseg.data.transforms.moves import resize
from instseg.ops import instance_rles
from instseg.structures import Instances, SparseMasks

GRAY_FILL = (90, 90, 90)
TRANSFORMS = {
    "resize": Resize((23, 31)),
    "resize, larger": Resize((55, 80)),
    "resize, plain": Resize((23, 31), antialias=False),
    "letterbox": Letterbox((30, 30)),
    "letterbox, antialiased": Letterbox((30, 30), antialias=True),
    "shortest edge": ResizeShortestEdge([24, 50], 64),
    "horizontal flip": RandomHorizontalFlip(1.0),
    "vertical flip": RandomVerticalFlip(1.0),
    "rotation": RandomRotation90(1.0),
    "crop": RandomCrop(),
    "jitter, cut": LargeScaleJitter((32, 32), 1.0, 2.0),
    "jitter, padded": LargeScaleJitter((64, 64), 0.3, 0.9),
    "expand": Expand(1.0, fill=GRAY_FILL),
    "iou crop": IoUCrop(),
    "window": RandomWindow((25, 30)),
    "window, mirrored": RandomWindow((60, 70)),
    "elastic": ElasticDeformation(3.0, rotation=20),
    "intensity": IntensityJitter(),
    "photometric": PhotometricDistort(p=1.0),
    "hsv": HsvJitter(),
    "mosaic": Mosaic((40, 50)),
    "mixup": MixUp(),
    "copy-paste": SimpleCopyPaste(1.0),
    "copy-paste, soft": SimpleCopyPaste(1.0, blend_sigma=1.5),
}
# The kinds of images that a transform refuses, and what it says that it takes.
REFUSED = {
    "photometric": ("1 or 3 channels", {(4, torch.uint8), (4, torch.uint16)}),
    "hsv": (
        "RGB images of 8 bits",
        {(c, t) for c in (1, 3, 4) for t in (torch.uint8, torch.uint16)} - {(3, torch.uint8)},
    ),
}
# Steps of 8 bits by which rounding, to 8 bits after each of several changes, may move a value.
ROUNDING = {"photometric": 6}


def channels_of(size, seed):
    """Four smooth channels of the same values in other places, so that their means agree."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    first = 20 + (seed * 13 + 3 * rows + 2 * columns) % 200
    return np.stack([first, first[::-1], first[:, ::-1], first[::-1, ::-1]]).astype(np.uint8)


def pair(channels, dtype=torch.uint8, size=(40, 60), seed=0, *, gray=False):
    """The first of the channels, or one of them several times; of 16 bits 257 times the value."""
    pixels = channels_of(size, seed)[[0] * channels if gray else slice(channels)]
    if dtype == torch.uint16:
        pixels = pixels.astype(np.uint16) * 257
    height, width = size
    corners = [(3, 4, 20, 22), (width // 2, 8, width - 2, height - 3)]
    target = Instances(
        image_size=size,
        boxes=torch.tensor(corners, dtype=torch.float32),
        labels=torch.tensor([seed, 1]),
        masks=SparseMasks(
            [
                [np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float64)]
                for x1, y1, x2, y2 in corners
            ],
            size,
            size,
        ),
        is_crowd=torch.zeros(2, dtype=torch.bool),
    )
    return tv_tensors.Image(torch.from_numpy(pixels.copy())), target


def transformed(name, channels, dtype=torch.uint8, seed=0, **options):
    """The transform's result with draws of ``seed``."""
    transform = TRANSFORMS[name]
    base = pair(channels, dtype, **options)
    torch.manual_seed(seed)
    if isinstance(transform, MixTransform):
        sizes = [(33, 44), (50, 40), (40, 60)][: transform.num_partners]
        return transform(
            base, [pair(channels, dtype, s, i, **options) for i, s in enumerate(sizes, 1)]
        )
    return Compose([transform])(*base)


def assert_same_objects(target, expected):
    assert target.image_size == expected.image_size
    assert torch.equal(target.boxes, expected.boxes)
    assert torch.equal(target.labels, expected.labels)
    assert instance_rles(target) == instance_rles(expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16], ids=["8", "16"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_works_as_on_rgb_of_8_bits_or_says_what_it_takes(name, channels, dtype):
    takes, refused = REFUSED.get(name, ("", set()))
    if (channels, dtype) in refused:
        with pytest.raises(ValueError, match=type(TRANSFORMS[name]).__name__) as error:
            transformed(name, channels, dtype)
        assert takes in str(error.value)
        return
    gray = channels == 1  # whose like in RGB has three equal channels
    seen = 0
    for seed in range(5):
        image, target = transformed(name, channels, dtype, seed, gray=gray)
        expected, objects = transformed(name, 3, torch.uint8, seed, gray=gray)
        assert image.dtype == dtype
        assert tuple(image.shape) == (channels, *target.image_size)
        assert_same_objects(target, objects)
        seen += len(target)
        shared = min(channels, 3)
        scale = 257 if dtype == torch.uint16 else 1
        apart = image[:shared].double() / scale - expected[:shared].double()
        assert apart.abs().max() <= ROUNDING.get(name, 1)
    assert seen  # the objects were compared


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name not in REFUSED])
def test_the_fourth_channel_goes_where_the_others_go(name):
    """It is the same picture as each of the others, so its result must be theirs."""
    image, target = transformed(name, 4, gray=True)
    assert len(image.unique()) > 1 or image[0].numel() == 1
    assert torch.equal(image[3], image[0])
    assert tuple(image.shape) == (4, *target.image_size)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16], ids=["8", "16"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_resizing_to_one_pixel_is_the_mean(channels, dtype):
    base, target = pair(channels, dtype)
    for antialias in (True, False):
        image, _ = resize(base, target, (1, 1), antialias=antialias)
        assert tuple(image.shape) == (channels, 1, 1)
        assert image.dtype == dtype
    smooth, _ = resize(base, target, (1, 1))
    scale = 257 if dtype == torch.uint16 else 1
    # A triangle filter, as wide as the image to each side, weighs the middle more than the ends.
    apart = smooth.double().flatten() / scale - base.double().mean(dim=(1, 2)) / scale
    assert apart.abs().max() < 25


@pytest.mark.parametrize("channels", [1, 2, 5, 30])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_plain_resizing_of_any_number_of_channels_is_that_of_each(channels, dtype):
    top = torch.iinfo(dtype).max
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, top + 1, (channels, 20, 30), generator=generator, dtype=torch.int32)
    image = tv_tensors.Image(pixels.to(dtype))
    target = Instances.empty((20, 30))
    together, _ = resize(image, target, (13, 41), antialias=False)
    for k in range(channels):
        alone, _ = resize(tv_tensors.Image(image[k : k + 1]), target, (13, 41), antialias=False)
        # Of 16 bits OpenCV's sums round differently by the number of channels.
        tolerance = int(dtype == torch.uint16)
        assert (together[k].int() - alone[0].int()).abs().max() <= tolerance


# --- the colours that transforms put in ----------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "dtype", "fill"),
    [
        (3, torch.uint8, [123, 117, 104]),
        (3, torch.uint16, [123 * 257, 117 * 257, 104 * 257]),
        (1, torch.uint8, [115]),  # (123 + 117 + 104) / 3 = 114.67
        (4, torch.uint16, [115 * 257] * 4),
    ],
)
def test_the_canvas_of_expand_has_a_value_for_each_channel(channels, dtype, fill):
    torch.manual_seed(0)
    image, target = Expand(1.0)(*pair(channels, dtype))
    assert image.shape[1] > 40
    covered = torch.zeros(target.image_size, dtype=torch.bool)
    x, y = (int(v) for v in (target.boxes[0, :2] - torch.tensor([3, 4])).tolist())
    covered[y : y + 40, x : x + 60] = True
    outside = image.int()[:, ~covered]
    assert (outside == torch.tensor(fill)[:, None]).all()
    assert torch.equal(image[:, covered], pair(channels, dtype)[0].flatten(1))


@pytest.mark.parametrize(("dtype", "factor"), [(torch.uint8, 1), (torch.uint16, 257)])
def test_padding_is_as_bright_at_either_depth(dtype, factor):
    torch.manual_seed(0)
    base, other = pair(1, dtype), pair(1, dtype, seed=1)
    padded, _ = LargeScaleJitter((64, 64), 0.5, 0.5)(*base)
    assert padded[0, -1, -1].item() == 128 * factor
    small = Mosaic((40, 40), min_scale=0.1, max_scale=0.1, max_shift=0)
    mosaic, _ = small(base, [other, other, other])
    assert mosaic[0, 0, 0].item() == 114 * factor
    white, _ = base
    white.fill_(torch.iinfo(dtype).max)
    mixed, objects = MixUp(min_scale=0.5, max_scale=0.5, min_visibility=0)(base, [other])
    assert len(objects) == 4
    assert mixed[0, -1, -1].item() == (255 + 114) * factor // 2


@pytest.mark.parametrize("mix", [Mosaic((40, 40)), MixUp(), SimpleCopyPaste(1.0)])
@pytest.mark.parametrize(
    ("other", "kinds"),
    [
        ((1, torch.uint16), "uint16 [1, H, W] and uint8 [1, H, W]"),
        ((3, torch.uint8), "uint8 [1, H, W] and uint8 [3, H, W]"),
    ],
)
def test_images_of_two_kinds_are_not_mixed(mix, other, kinds):
    partners = [pair(1, torch.uint8) for _ in range(mix.num_partners - 1)] + [pair(*other)]
    with pytest.raises(ValueError, match=f"{type(mix).__name__} mixes images of one") as error:
        mix(pair(1, torch.uint8), partners)
    assert f"got {kinds}; " in str(error.value)
