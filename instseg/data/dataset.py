"""From a record of the index to a transformed sample."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from instseg.data.image_io import ImageError, read_image
from instseg.data.index import Record
from instseg.data.sampling import SampleKey, sample_seed
from instseg.data.transforms import Compose, Pair, SimpleCopyPaste
from instseg.structures.geometry import Size
from instseg.structures.instances import Instances
from instseg.structures.masks import SparseMasks

_logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Sample:
    """One transformed image and its objects.

    Args:
        image: ``uint8 [3, H, W]``, RGB.
        target: the objects, ``image_size == (H, W)``; masks are `SparseMasks` or None.
        image_id: id in the annotation file.
        original_size: (height, width) before the transforms.
        path: the image file.
    """

    image: Tensor
    target: Instances
    image_id: int
    original_size: Size
    path: str


class DetectionDataset(Dataset[Sample | None]):
    """Reads, transforms and, where asked, copy-pastes the images of an index.

    A sample is a pure function of ``(seed, key)``, to the last bit: its random draws come from a
    stream of its own, and leave torch's global generators (the CPU's and any accelerator's) as
    they were.

    Args:
        records: from `instseg.data.index.build_index`; images without objects are welcome.
        transforms: applied to every image.
        seed: of all random draws.
        with_masks: give the targets masks.
        copy_paste: paste objects of a randomly drawn second image; needs masks.
        on_error: what an image does that cannot be read, or has not the size that its record
            states: "raise" raises, "skip" logs a warning once for each file and gives None (or
            pastes nothing, where it is the second image of copy-paste).

    Raises:
        ValueError: ``with_masks`` and a record has no segmentations, or ``copy_paste`` without
            ``with_masks``.
    """

    def __init__(
        self,
        records: Sequence[Record],
        transforms: Compose,
        *,
        seed: int,
        with_masks: bool,
        copy_paste: SimpleCopyPaste | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        if with_masks:
            for record in records:
                if record.segmentations is None:
                    raise ValueError(
                        f"image {record.image_id} ({record.path}) has no segmentations; "
                        "use with_masks=False to train boxes alone"
                    )
        elif copy_paste is not None:
            raise ValueError("copy-paste needs with_masks=True: what it pastes are masks")
        self.records = records
        self._transforms = transforms
        self._seed = seed
        self._with_masks = with_masks
        self._copy_paste = copy_paste
        self._skip_unreadable = on_error == "skip"
        # Shared by the loader's worker processes, so that they warn once between them.
        self._warned = torch.zeros(len(records), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> Sample | None:
        """The sample of ``key``, or None where its image cannot be read and is to be skipped.

        Raises:
            ImageError: the image cannot be read or has the wrong size, and ``on_error="raise"``.
        """
        with _reproducible(sample_seed(self._seed, key.epoch, key.index)):
            pair = self._transformed(key.index)
            if pair is None:
                return None
            if self._copy_paste is not None and torch.rand(()) < self._copy_paste.p:
                pair = self._pasted_on(pair, self._copy_paste)
        image, target = pair
        record = self.records[key.index]
        return Sample(
            # A cropped view would drag the whole image's memory to the training process.
            image=image.as_subclass(Tensor).contiguous(),
            target=target,
            image_id=record.image_id,
            original_size=record.size,
            path=str(record.path),
        )

    def _pasted_on(self, base: Pair, copy_paste: SimpleCopyPaste) -> Pair:
        donor_index = int(torch.randint(len(self.records), ()))
        donor = self._transformed(donor_index)
        if donor is None:
            return base
        with _naming(self.records[donor_index].path):
            return copy_paste(base, donor)

    def _transformed(self, index: int) -> Pair | None:
        record = self.records[index]
        try:
            image = _read(record)
        except ImageError as error:
            if not self._skip_unreadable:
                raise
            if not self._warned[index]:
                self._warned[index] = True
                _logger.warning("skipping an image: %s", error)
            return None
        with _naming(record.path):
            pair: Pair = self._transforms(image, self._target(record))
            return pair

    def _target(self, record: Record) -> Instances:
        masks = None
        if self._with_masks:
            assert record.segmentations is not None
            masks = SparseMasks(record.segmentations, record.size, record.size)
        return Instances(
            image_size=record.size,
            boxes=torch.from_numpy(record.boxes),
            labels=torch.from_numpy(record.labels),
            masks=masks,
            is_crowd=torch.from_numpy(record.is_crowd),
        )


def _read(record: Record) -> tv_tensors.Image:
    pixels = read_image(record.path)
    size = (pixels.shape[0], pixels.shape[1])
    if size != record.size:
        # Boxes and masks drawn on another size would lie in the wrong place without a word.
        raise ImageError(
            record.path,
            f"height x width is {size[0]}x{size[1]}, but the annotations (image id "
            f"{record.image_id}) state {record.size[0]}x{record.size[1]}",
        )
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
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
def _naming(path: Path) -> Iterator[None]:
    """Note on any error which file was at work; notes survive the way out of worker processes."""
    try:
        yield
    except Exception as error:
        error.add_note(f"while preparing {path}")
        raise
