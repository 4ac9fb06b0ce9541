"""From a record of the index to a transformed sample."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from instseg.data.image_io import ImageError, image_size, read_image
from instseg.data.index import Record, Records
from instseg.data.sampling import SampleKey, sample_seed
from instseg.data.transforms import Compose, MixTransform, Pair
from instseg.data.transforms.layout import planar
from instseg.structures.geometry import Size
from instseg.structures.image_target import ImageTarget
from instseg.structures.instances import Instances
from instseg.structures.masks import SparseMasks
from instseg.structures.semantic_map import SemanticMap

_logger = logging.getLogger(__name__)

Target = Instances | SemanticMap | ImageTarget
"""What is known of an image: its objects, the classes of its pixels, or another picture."""


@dataclass(eq=False)
class Sample:
    """One transformed image and its objects.

    Args:
        image: ``uint8 [C, H, W]``, RGB as a rule; ``uint16 [C, H, W]`` where 16 bits are kept.
        target: the objects, ``image_size == (H, W)``, masks `SparseMasks` or None; or what was
            made of them (`DetectionDataset`'s ``make_target``).
        image_id: id in the annotation file.
        original_size: (height, width) before the transforms.
        path: the image file.
    """

    image: Tensor
    target: Target
    image_id: int
    original_size: Size
    path: str


class DetectionDataset(Dataset[Sample | None]):
    """Reads, mixes and transforms the images of an index.

    A sample is a pure function of ``(seed, key)``, to the last bit: its random draws come from a
    stream of its own, and leave torch's global generators (the CPU's and any accelerator's) as
    they were.

    Args:
        records: from `instseg.data.index.build_index`; images without objects are welcome.
        transforms: applied to every image.
        seed: of all random draws.
        with_masks: give the targets masks.
        mix_read: mixes of images as they are read, before the transforms, in this order; their
            partners are other images as read (mosaic, MixUp).
        mix_read_epochs: the number of epochs, from 0, in which ``mix_read`` is at work; None for
            all.
        mix_transformed: mixes of transformed samples; their partners are other images, read and
            transformed (copy-paste).
        on_error: what an image does that cannot be read, or has not the size that its record
            states: "raise" raises, "skip" logs a warning once for each file and gives None (or
            leaves out the mix, where it is a partner).
        channels: of the images; see `read_image`.
        bits16: what becomes of 16-bit images; "keep" leaves them ``uint16``. See `read_image`.
        decode: "reduced" decodes a JPEG at 1/2, 1/4 or 1/8 of its size where ``transforms`` begin
            with a resize to no more than that, which is faster; pixels differ a little. Images
            that ``mix_read`` is at work on come whole.
        make_target: makes the samples' targets of their objects after all else; None leaves them.

    Raises:
        ValueError: ``with_masks`` and a record has no segmentations, or a mix needs masks and
            there are none.
    """

    def __init__(
        self,
        records: Sequence[Record],
        transforms: Compose,
        *,
        seed: int,
        with_masks: bool,
        mix_read: Sequence[MixTransform] = (),
        mix_read_epochs: int | None = None,
        mix_transformed: Sequence[MixTransform] = (),
        on_error: Literal["raise", "skip"] = "raise",
        channels: int = 3,
        bits16: Literal["scale", "stretch", "keep"] = "scale",
        decode: Literal["full", "reduced"] = "full",
        make_target: Callable[[Instances], Target] | None = None,
    ) -> None:
        if with_masks and (record := _without_masks(records)) is not None:
            raise ValueError(
                f"image {record.image_id} ({record.path}) has no segmentations; "
                "use with_masks=False to train boxes alone"
            )
        for mix in (*mix_read, *mix_transformed):
            if mix.needs_masks and not with_masks:
                raise ValueError(f"{type(mix).__name__} moves masks: it needs with_masks=True")
        self.records = records
        self._transforms = transforms
        self._seed = seed
        self._with_masks = with_masks
        self._mix_read = mix_read
        self._mix_read_epochs = mix_read_epochs
        self._mix_transformed = mix_transformed
        self._skip_unreadable = on_error == "skip"
        self._channels = channels
        self._bits16 = bits16
        self._reduces = decode == "reduced"
        self._make_target = make_target
        # Shared by the loader's worker processes, so that they warn once between them.
        self._warned = torch.zeros(len(records), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> Sample | None:
        """The sample of ``key``, or None where its image cannot be read and is to be skipped.

        Raises:
            ImageError: the image cannot be read or has the wrong size, and ``on_error="raise"``.
        """
        record = self.records[key.index]
        seed = sample_seed(self._seed, key.epoch, key.index, key.repeat)
        with reproducible(seed), naming(record.path):
            is_plain = self._mix_read_epochs is not None and key.epoch >= self._mix_read_epochs
            mixes = () if is_plain else self._mix_read
            pair = self._pair(key.index, record, whole=bool(mixes))
            if pair is None:
                return None
            pair = self._transforms(*self._mixed(pair, mixes, self._read))
            image, objects = self._mixed(pair, self._mix_transformed, self._read_and_transformed)
            target = objects if self._make_target is None else self._make_target(objects)
        return Sample(
            # A cropped view would drag the whole image's memory to the training process.
            image=planar(image.as_subclass(Tensor)),
            target=target,
            image_id=record.image_id,
            original_size=record.size,
            path=str(record.path),
        )

    def _mixed(
        self, base: Pair, mixes: Sequence[MixTransform], load: Callable[[int], Pair | None]
    ) -> Pair:
        for mix in mixes:
            if not torch.rand(()) < mix.p:
                continue
            indices = torch.randint(len(self.records), (mix.num_partners,)).tolist()
            loaded = [load(i) for i in indices]
            partners = [pair for pair in loaded if pair is not None]
            if len(partners) == len(indices):
                with naming(*(self.records[i].path for i in indices)):
                    base = mix(base, partners)
        return base

    def _read_and_transformed(self, index: int) -> Pair | None:
        record = self.records[index]
        pair = self._pair(index, record, whole=False)
        if pair is None:
            return None
        with naming(record.path):
            transformed: Pair = self._transforms(*pair)
            return transformed

    def _read(self, index: int) -> Pair | None:
        """An image as it is in the file; None where it cannot be read and is to be skipped."""
        return self._pair(index, self.records[index], whole=True)

    def _pair(self, index: int, record: Record, *, whole: bool) -> Pair | None:
        """As `_read`; unless ``whole``, of fewer pixels than its objects' size says, for `Compose`.

        The record is given because making it costs time.
        """
        try:
            return self._image(record, whole), instances_of(record, with_masks=self._with_masks)
        except ImageError as error:
            if not self._skip_unreadable:
                raise
            if not self._warned[index]:
                self._warned[index] = True
                _logger.warning("skipping an image: %s", error)
            return None

    def _image(self, record: Record, whole: bool) -> tv_tensors.Image:
        least = None if whole else self._least_size(record.size)
        pixels = read_image(
            record.path, channels=self._channels, bits16=self._bits16, least_size=least
        )
        size = (pixels.shape[0], pixels.shape[1]) if least is None else image_size(record.path)
        if size != record.size:
            # Boxes and masks drawn on another size would lie in the wrong place without a word.
            raise ImageError(
                record.path,
                f"height x width is {size[0]}x{size[1]}, but the annotations (image id "
                f"{record.image_id}) state {record.size[0]}x{record.size[1]}",
            )
        return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))

    def _least_size(self, size: Size) -> Size | None:
        """What suffices of an image of ``size`` where half of it does; else None, for the whole."""
        if not self._reduces:
            return None
        least = self._transforms.largest_size(size)
        return least if 2 * least[0] <= size[0] and 2 * least[1] <= size[1] else None


def _without_masks(records: Sequence[Record]) -> Record | None:
    """The first record without segmentations."""
    if isinstance(records, Records):  # all alike, and each costs the making
        return None if records.has_masks or not records else records[0]
    return next((record for record in records if record.segmentations is None), None)


def instances_of(record: Record, *, with_masks: bool) -> Instances:
    """The objects of an image as the annotations have them; with masks it must have some."""
    masks = None
    if with_masks:
        assert record.segmentations is not None
        masks = SparseMasks(record.segmentations, record.size, record.size)
    return Instances(
        image_size=record.size,
        boxes=torch.from_numpy(record.boxes.copy()),  # what is done to samples must not reach it
        labels=torch.from_numpy(record.labels.copy()),
        masks=masks,
        is_crowd=torch.from_numpy(record.is_crowd.copy()),
    )


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator and use one thread inside; both are as before afterwards.

    ``torch.manual_seed`` would seed the accelerators too, whose state ``fork_rng`` does not keep
    here: with no worker process that is the training's own stream. One thread, as workers have:
    the mean brightness that contrast changes use is a sum whose last bits depend on the number.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def naming(*paths: Path) -> Iterator[None]:
    """Note on any error which files were at work; notes survive the way out of workers."""
    try:
        yield
    except Exception as error:
        error.add_note(f"while preparing {', '.join(map(str, paths))}")
        raise
