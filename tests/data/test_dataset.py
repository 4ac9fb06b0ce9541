"""Samples: what they hold, that they are pure functions of their key, and broken files."""

import dataclasses
import logging
import random
import warnings

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from instseg.data import dataset as dataset_module
from instseg.data.coco import load_coco
from instseg.data.dataset import DetectionDataset
from instseg.data.image_io import ImageError
from instseg.data.index import Record, build_index
from instseg.data.sampling import SampleKey
from instseg.data.transforms import (
    Compose,
    LargeScaleJitter,
    MixUp,
    Mosaic,
    PhotometricDistort,
    RandomCrop,
    RandomHorizontalFlip,
    ResizeShortestEdge,
    SimpleCopyPaste,
)
from instseg.ops import instance_rles, rle
from tests.data.small_set import contents, make_records, truncate


@pytest.fixture
def records(tmp_path) -> list[Record]:
    return make_records(tmp_path)


def augmented(records, seed=0, **settings) -> DetectionDataset:
    chain = [LargeScaleJitter((40, 48), 0.5, 2.0), RandomHorizontalFlip(), PhotometricDistort()]
    return DetectionDataset(records, Compose(chain), seed=seed, with_masks=True, **settings)


def plain(records, **settings) -> DetectionDataset:
    return DetectionDataset(
        records, Compose([]), **({"seed": 0, "with_masks": True, "on_error": "raise"} | settings)
    )


def all_bits(sample):
    return sample.image.numpy().tobytes(), contents(sample.target), sample.image_id, sample.path


def test_a_sample_holds_the_record_and_its_pixels(records):
    record = records[0]
    sample = plain(records)[SampleKey(0, 0)]
    assert np.array_equal(
        sample.image.permute(1, 2, 0).numpy(), cv2.imread(str(record.path))[..., ::-1]
    )
    assert type(sample.image) is torch.Tensor
    assert sample.image.is_contiguous()
    assert (sample.image_id, sample.path) == (100, str(record.path))
    assert sample.original_size == sample.target.image_size == record.size
    assert np.array_equal(sample.target.boxes.numpy(), record.boxes)
    assert sample.target.labels.tolist() == [0, 1, 2]
    assert sample.target.crowd.tolist() == [False, False, True]
    polygon = rle.decode(rle.from_polygons(record.segmentations[1], record.size))
    assert np.array_equal(rle.decode(instance_rles(sample.target)[1]), polygon)


def test_an_image_without_objects_is_a_sample(records):
    sample = augmented(records)[SampleKey(0, 2)]
    assert len(sample.target) == 0
    assert sample.target.boxes.shape == (0, 4)
    assert tuple(sample.image.shape) == (3, 40, 48)


def test_original_size_is_that_before_the_transforms(records):
    sample = augmented(records)[SampleKey(0, 0)]
    assert sample.original_size == records[0].size != sample.target.image_size == (40, 48)


def test_masks_can_be_left_out(records):
    assert plain(records, with_masks=False)[SampleKey(0, 0)].target.masks is None


def test_a_cropped_image_does_not_hold_the_whole_one(records):
    sample = DetectionDataset(records, Compose([RandomCrop(0.3, 0.3)]), seed=0, with_masks=False)[
        SampleKey(0, 0)
    ]
    assert sample.image.untyped_storage().nbytes() == sample.image.numel()


def test_a_sample_is_a_pure_function_of_seed_epoch_and_index(records):
    dataset = augmented(records, mix_transformed=[SimpleCopyPaste(p=0.7)])
    keys = [SampleKey(e, i) for e in range(2) for i in range(len(records))]
    forward = {key: all_bits(dataset[key]) for key in keys}
    torch.manual_seed(99)
    again = augmented(records, mix_transformed=[SimpleCopyPaste(p=0.7)])
    backward = {key: all_bits(again[key]) for key in reversed(keys)}
    assert forward == backward
    assert len({bits[0] for bits in forward.values()}) == len(keys)  # and all of them differ
    other = augmented(records, seed=1, mix_transformed=[SimpleCopyPaste(p=0.7)])
    assert all(all_bits(other[key])[0] != forward[key][0] for key in keys)


MIXES = {
    "mix_read": [Mosaic((40, 48), p=0.7), MixUp(p=0.7)],
    "mix_transformed": [SimpleCopyPaste(p=0.5)],
}


def test_a_mixed_sample_is_a_pure_function_too(records):
    keys = [SampleKey(e, i) for e in range(3) for i in range(len(records))]
    dataset, again = augmented(records, **MIXES), augmented(records, **MIXES)
    forward = {key: all_bits(dataset[key]) for key in keys}
    torch.manual_seed(99)
    assert {key: all_bits(again[key]) for key in reversed(keys)} == forward
    assert len({bits[0] for bits in forward.values()}) == len(keys)


def test_the_last_epochs_are_without_mixes_of_read_images(records):
    dataset, bare = augmented(records, **MIXES, mix_read_epochs=2), augmented(records)
    always = augmented(records, **MIXES)
    pasted_only = augmented(records, mix_transformed=MIXES["mix_transformed"])
    for i in range(len(records)):
        for epoch in (0, 1):
            assert all_bits(dataset[SampleKey(epoch, i)]) == all_bits(always[SampleKey(epoch, i)])
        for epoch in (2, 3):
            expected = all_bits(pasted_only[SampleKey(epoch, i)])
            assert all_bits(dataset[SampleKey(epoch, i)]) == expected
    plain_bits = [all_bits(bare[SampleKey(2, i)]) for i in range(len(records))]
    assert [all_bits(always[SampleKey(2, i)]) for i in range(len(records))] != plain_bits


def test_mosaic_and_mixup_come_before_the_transforms(records):
    seen = []
    watch = v2.Lambda(lambda image: (seen.append(tuple(image.shape)), image)[1], tv_tensors.Image)
    dataset = DetectionDataset(
        records, Compose([watch]), seed=0, with_masks=True, mix_read=[Mosaic((33, 44)), MixUp()]
    )
    sample = dataset[SampleKey(0, 0)]
    assert seen == [(3, 33, 44)]
    assert sample.original_size == records[0].size
    assert sample.target.image_size == (33, 44)
    assert len(sample.target) > len(records[0].labels)


@pytest.mark.parametrize("mix", [Mosaic((40, 40)), MixUp()], ids=["mosaic", "mixup"])
def test_an_unreadable_partner_costs_only_the_mix(records, mix, caplog):
    base, broken = records[0], records[1]
    truncate(broken.path)
    raising = plain([base, broken], mix_read=[mix])
    skipping = plain([base, broken], mix_read=[mix], on_error="skip")
    unmixed = all_bits(plain([base])[SampleKey(0, 0)])
    errors = []
    for epoch in range(20):
        try:
            mixed = all_bits(raising[SampleKey(epoch, 0)])
        except ImageError as error:
            errors.append((error.path, error.__notes__))
            mixed = unmixed
        assert all_bits(skipping[SampleKey(epoch, 0)]) == mixed
    assert 0 < len(errors) < 20
    assert errors == [(broken.path, [f"while preparing {base.path}"])] * len(errors)
    assert caplog.text.count("image1.jpg") == 1


def test_an_error_in_a_mix_names_all_its_files(records, monkeypatch):
    def fail(self, base, partners):
        raise RuntimeError("cannot mix")

    monkeypatch.setattr(Mosaic, "__call__", fail)
    with pytest.raises(RuntimeError, match="cannot mix") as caught:
        plain(records[:1], mix_read=[Mosaic((9, 9))])[SampleKey(0, 0)]
    path = records[0].path
    assert caught.value.__notes__ == [
        f"while preparing {path}, {path}, {path}",
        f"while preparing {path}",
    ]


def test_global_random_streams_are_left_alone(records):
    def states():
        return (
            torch.get_rng_state().numpy().tobytes(),
            str(np.random.get_state()),
            random.getstate(),
        )

    before = states()
    dataset = augmented(records, mix_transformed=[SimpleCopyPaste(p=1.0)])
    for i in range(len(records)):
        dataset[SampleKey(0, i)]
    assert states() == before
    truncate(records[0].path)
    with pytest.raises(ImageError):
        dataset[SampleKey(0, 0)]
    assert states() == before


def test_a_sample_is_made_by_one_thread(records):
    """Sums over an image differ in their last bits with the number of threads."""
    seen = []
    watch = v2.Lambda(
        lambda image: (seen.append(torch.get_num_threads()), image)[1], tv_tensors.Image
    )
    dataset = DetectionDataset(records, Compose([watch]), seed=0, with_masks=True)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        dataset[SampleKey(0, 0)]
        assert (seen, torch.get_num_threads()) == ([1], 3)
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
def test_accelerator_stream_is_left_alone(records):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.rand(3, device="cuda")
    before = torch.cuda.get_rng_state()
    augmented(records)[SampleKey(0, 0)]
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_records_survive_what_is_done_to_samples(records):
    before = records[0].boxes.copy()
    dataset = plain(records)
    dataset[SampleKey(0, 0)].target.boxes.zero_()
    assert np.array_equal(records[0].boxes, before)


def test_images_that_pillow_reads_make_no_warning(records, tmp_path):
    """Pillow hands out read-only memory, which torch warns about."""
    path = tmp_path / "image.bmp"
    Image.open(records[2].path).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample = plain([dataclasses.replace(records[2], path=path)])[SampleKey(0, 0)]
    assert sample.image.sum() > 0


def test_unreadable_image_raises_with_its_name(records):
    truncate(records[4].path)
    with pytest.raises(ImageError, match=r"image4\.jpg"):
        plain(records)[SampleKey(0, 4)]


def test_unreadable_image_is_skipped_with_one_warning(records, caplog):
    truncate(records[4].path)
    records[6].path.unlink()
    dataset = plain(records, on_error="skip")
    with caplog.at_level(logging.WARNING):
        for epoch in range(3):
            samples = [dataset[SampleKey(epoch, i)] for i in range(len(records))]
            assert [i for i, sample in enumerate(samples) if sample is None] == [4, 6]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "image4.jpg" in messages[0]
    assert "image6.jpg" in messages[1]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_size_that_differs_from_the_annotations_is_an_error(records, caplog, on_error):
    height, width = records[1].size
    records[1] = dataclasses.replace(records[1], size=(width + 1, height))
    dataset = plain(records, on_error=on_error)
    message = (
        f"image1.jpg: height x width is {height}x{width}, but the annotations (image id 101) "
        f"state {width + 1}x{height}"
    )
    if on_error == "raise":
        with pytest.raises(ImageError) as caught:
            dataset[SampleKey(0, 1)]
        assert message in str(caught.value)
        assert caught.value.path == records[1].path
    else:
        assert dataset[SampleKey(0, 1)] is None
        assert message in caplog.text


def test_an_error_in_a_transform_names_the_file(records):
    def fail(image):
        raise RuntimeError("cannot do that")

    dataset = DetectionDataset(
        records, Compose([v2.Lambda(fail)]), seed=0, with_masks=True, on_error="skip"
    )
    with pytest.raises(RuntimeError, match="cannot do that") as caught:
        dataset[SampleKey(0, 3)]
    assert caught.value.__notes__ == [f"while preparing {records[3].path}"]


def test_copy_paste_mixes_two_samples(records):
    grown = 0
    dataset, bare = plain(records, mix_transformed=[SimpleCopyPaste(p=1.0)]), plain(records)
    for i in range(len(records)):
        pasted, base = dataset[SampleKey(0, i)], bare[SampleKey(0, i)]
        assert pasted.target.image_size == base.target.image_size == pasted.target.masks.size
        assert pasted.image_id == base.image_id
        changed = (pasted.image != base.image).any(dim=0).numpy()
        codes = instance_rles(pasted.target)
        covered = rle.decode(rle.merge(codes)) == 1 if codes else np.zeros_like(changed)
        assert not (changed & ~covered).any()  # what was pasted belongs to an object
        grown += bool(changed.any())
    assert grown >= 3


def test_copy_paste_loads_no_second_image_where_it_does_not_paste(records, monkeypatch):
    read = []
    original = dataset_module.read_image
    monkeypatch.setattr(
        dataset_module,
        "read_image",
        lambda path, **how: (read.append(path), original(path, **how))[1],
    )
    dataset = plain(records, mix_transformed=[SimpleCopyPaste(p=0.0)])
    dataset[SampleKey(0, 3)]
    assert read == [records[3].path]
    dataset = plain(records, mix_transformed=[SimpleCopyPaste(p=1.0)])
    for epoch in range(40):
        dataset[SampleKey(epoch, 3)]
    assert len(read) == 1 + 80
    assert set(read[2::2]) == {record.path for record in records}  # any image can be the second


def test_an_unreadable_second_image_costs_only_the_paste(records, caplog):
    base, broken = records[0], records[1]
    truncate(broken.path)
    whole = all_bits(plain([base])[SampleKey(0, 0)])
    raising = plain([base, broken], mix_transformed=[SimpleCopyPaste(p=1.0)])
    skipping = plain([base, broken], mix_transformed=[SimpleCopyPaste(p=1.0)], on_error="skip")
    drawn = 0
    for epoch in range(10):
        try:
            raising[SampleKey(epoch, 0)]
        except ImageError:
            drawn += 1
            assert all_bits(skipping[SampleKey(epoch, 0)]) == whole
    assert 0 < drawn < 10
    assert caplog.text.count("image1.jpg") == 1


def test_masks_have_to_be_there(records):
    records[5] = dataclasses.replace(records[5], segmentations=None)
    with pytest.raises(ValueError, match=r"image 105 .*image5\.jpg\) has no segmentations"):
        plain(records)
    assert len(plain(records, with_masks=False)) == 9
    with pytest.raises(ValueError, match="SimpleCopyPaste moves masks: it needs with_masks=True"):
        plain(records, with_masks=False, mix_transformed=[SimpleCopyPaste()])


@pytest.mark.real_data
def test_real_images_with_the_whole_chain(real_data):
    """COCO's own annotations: after scaling and flipping, masks still fill their boxes."""
    folder = real_data / "coco_tiny80"
    annotations = folder / "annotations" / "instances_val2017.json"
    index = build_index(
        load_coco(annotations), folder / "val2017", source=str(annotations), need_masks=True
    )
    chain = Compose([ResizeShortestEdge([200, 300], 400), RandomHorizontalFlip(1.0)])
    dataset = DetectionDataset(index.records, chain, seed=0, with_masks=True)
    compared = 0
    for i in range(0, len(dataset), 8):
        sample = dataset[SampleKey(0, i)]
        assert min(sample.image.shape[1:]) <= 300
        for box, code in zip(sample.target.boxes, instance_rles(sample.target), strict=True):
            sides = box[2:] - box[:2]
            if sides.min() < 8:
                continue
            compared += 1
            np.testing.assert_allclose(box.numpy(), rle.to_box(code), atol=2.5)
    assert compared > 20
