"""Pairs of pictures: how they are found, that both move alike, and broken files."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from instseg.data.formats.common import FormatError
from instseg.data.image_io import ImageError
from instseg.data.image_pairs import ImagePairs, Jitter, find_pairs
from instseg.data.loader import DetectionLoader
from instseg.data.sampling import EvalSampler, SampleKey, TrainBatchSampler
from tests.data.small_set import truncate


def write(path: Path, pixels: np.ndarray) -> Tensor:
    """Save RGB ``[H, W, 3]`` as PNG, and give it as the data set should."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels[..., ::-1])
    return torch.from_numpy(pixels).permute(2, 0, 1)


def noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folders(tmp_path) -> Path:
    """Three pairs in ``inputs`` and ``targets``; targets are negatives."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(("b", "a", "deep/c")):
        pixels = noise(rng, 20 + i, 30)
        write(tmp_path / "inputs" / f"{name}.png", pixels)
        write(tmp_path / "targets" / f"{name}.bmp", 255 - pixels)
    return tmp_path


@pytest.mark.parametrize("swap", [False, True])
def test_pairs_of_folders(folders, swap):
    own, other = ("targets", "inputs") if swap else ("inputs", "targets")
    pairs = find_pairs(folders, swap=swap)
    assert [p.path.relative_to(folders / own).stem for p in pairs] == ["a", "b", "c"]
    assert [p.target_path.relative_to(folders / other).stem for p in pairs] == ["a", "b", "c"]
    assert [p.image_id for p in pairs] == [1, 2, 3]
    assert [p.size for p in pairs] == [(21, 30), (20, 30), (22, 30)]
    assert not any(p.side_by_side for p in pairs)
    sample = ImagePairs(pairs, seed=0)[SampleKey(0, 2)]
    assert sample.image.dtype == torch.uint8
    assert torch.equal(sample.image, 255 - sample.target.image)
    assert sample.original_size == sample.target.image_size == (22, 30)
    assert (sample.image_id, sample.path) == (3, str(pairs[2].path))


@pytest.mark.parametrize("swap", [False, True])
def test_pairs_side_by_side(tmp_path, swap):
    rng = np.random.default_rng(1)
    both = write(tmp_path / "train" / "1.png", noise(rng, 12, 34))
    (pair,) = find_pairs(tmp_path, swap=swap)
    assert pair.side_by_side
    assert pair.size == (12, 17)
    sample = ImagePairs([pair], seed=0)[SampleKey(0, 0)]
    halves = [both[..., :17], both[..., 17:]]
    assert torch.equal(sample.image, halves[swap])
    assert torch.equal(sample.target.image, halves[not swap])
    assert sample.image.untyped_storage().nbytes() == sample.image.numel()


def offset(picture: Tensor, big: Tensor) -> tuple[int, int, bool]:
    """Where in ``big`` the picture is, and whether it is mirrored."""
    side = picture.shape[-1]
    found = []
    for mirrored in (False, True):
        wanted = picture.flip(-1) if mirrored else picture
        for i in range(big.shape[1] - side + 1):
            for j in range(big.shape[2] - side + 1):
                if torch.equal(big[:, i : i + side, j : j + side], wanted):
                    found.append((i, j, mirrored))
    (place,) = found
    return place


def test_jitter_crops_and_mirrors_both_alike():
    """Pictures of the size that they are resized to, so that crops can be found in them."""
    picture = torch.randint(256, (3, 9, 9), dtype=torch.uint8)
    other = torch.randint(256, (1, 9, 9), dtype=torch.uint8)
    jitter = Jitter(resize=9, crop=7)
    places = []
    for _ in range(200):
        moved, moved_other = jitter([picture, other])
        places.append(offset(moved, picture))
        assert offset(moved_other, other) == places[-1]
    expected = {(i, j, m) for i in range(3) for j in range(3) for m in (False, True)}
    assert set(places) == expected
    still = Jitter(resize=9, crop=7, mirror=False)
    assert not any(offset(still([picture])[0], picture)[2] for _ in range(20))


def test_jitter_resizes_to_a_square():
    ramp = torch.arange(0, 240, 20, dtype=torch.uint8).expand(3, 6, 12)
    (moved,) = Jitter(resize=6, crop=6, mirror=False)([ramp])
    # Halved across: the mean of columns 2 j - 1 .. 2 j + 2, weighed 1, 3, 3, 1.
    assert moved[0, 0, 1:-1].tolist() == [50, 90, 130, 170]
    assert moved.shape == (3, 6, 6)
    assert Jitter()([ramp])[0].shape == (3, 256, 256)


@pytest.mark.parametrize("crop", [0, 287])
def test_a_crop_that_does_not_fit(crop):
    with pytest.raises(ValueError, match=rf"crop must be in 1\.\.286 \(resize\), got {crop}"):
        Jitter(crop=crop)


def bits(sample) -> tuple:
    return sample.image.numpy().tobytes(), sample.target.image.numpy().tobytes(), sample.image_id


def test_a_sample_is_a_pure_function_of_seed_epoch_and_index(folders):
    pairs = find_pairs(folders)
    dataset = ImagePairs(pairs, seed=0, jitter=Jitter(16, 11))
    keys = [SampleKey(e, i) for e in range(2) for i in range(3)]
    state = torch.get_rng_state()
    forward = {key: bits(dataset[key]) for key in keys}
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = ImagePairs(pairs, seed=0, jitter=Jitter(16, 11))
    assert {key: bits(again[key]) for key in reversed(keys)} == forward
    assert len({b[0] for b in forward.values()}) == len(keys)
    other = ImagePairs(pairs, seed=1, jitter=Jitter(16, 11))
    assert any(bits(other[key]) != forward[key] for key in keys)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_gives_batches_of_pairs(folders, workers):
    pairs = find_pairs(folders)
    dataset = ImagePairs(pairs, seed=0, jitter=Jitter(16, 11))
    sampler = TrainBatchSampler([p.size for p in pairs], 2, seed=0)
    loader = DetectionLoader(dataset, sampler, num_workers=workers)
    batches = list(loader.epoch(1))
    assert [len(b) for b in batches] == [2, 1]
    samples = [dataset[key] for keys in sampler.batches(1) for key in keys]
    targets = [t for b in batches for t in b.targets]
    assert [i for b in batches for i in b.image_ids] == [s.image_id for s in samples]
    for target, sample in zip(targets, samples, strict=True):
        assert torch.equal(target.image, sample.target.image)


def test_broken_pairs_raise_or_are_skipped(folders, caplog):
    pairs = find_pairs(folders)
    truncate(pairs[1].target_path)
    with pytest.raises(ImageError, match=r"b\.bmp"):
        ImagePairs(pairs, seed=0)[SampleKey(0, 1)]
    skipping = ImagePairs(pairs, seed=0, on_error="skip")
    with caplog.at_level(logging.WARNING):
        batches = list(DetectionLoader(skipping, EvalSampler(3, 2)).epoch(0))
        assert skipping[SampleKey(1, 1)] is None
    assert [b.image_ids for b in batches] == [[1], [3]]
    assert [r.getMessage().count("b.bmp") for r in caplog.records] == [1]


def test_a_file_that_changed_its_size_is_an_error(folders):
    pairs = find_pairs(folders)
    write(pairs[0].path, np.zeros((5, 6, 3), np.uint8))
    with pytest.raises(ImageError, match=r"a\.png.*5x6, but was 21x30 when"):
        ImagePairs(pairs, seed=0)[SampleKey(0, 0)]


def test_bad_folders(folders, tmp_path):
    with pytest.raises(FormatError, match="no such folder"):
        find_pairs(tmp_path / "nowhere")
    write(folders / "inputs" / "alone.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(FormatError, match=r"inputs: 1 without a file .*targets: alone\.png"):
        find_pairs(folders)
    write(folders / "targets" / "alone.png", np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(FormatError, match=r"alone\.png: 4x5 .* its input .*alone\.png has 4x4"):
        find_pairs(folders)
    write(folders / "targets" / "alone.bmp", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(FormatError, match=r"alone\.bmp and alone\.png have one name"):
        find_pairs(folders)
    write(tmp_path / "half" / "inputs" / "a.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(FormatError, match="has no folder 'targets'"):
        find_pairs(tmp_path / "half")
    write(tmp_path / "odd" / "a.png", np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(ImageError, match=r"odd/a\.png: is 5 pixels wide"):
        find_pairs(tmp_path / "odd")
