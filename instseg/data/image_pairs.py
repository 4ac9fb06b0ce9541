"""Pairs of pictures for image-to-image models: their files, their jitter, the data set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from instseg.data.dataset import Sample, naming, reproducible
from instseg.data.formats.common import IMAGE_SUFFIXES, FormatError, list_files
from instseg.data.image_io import ImageError, image_size, read_image
from instseg.data.sampling import SampleKey, sample_seed
from instseg.structures.geometry import Size
from instseg.structures.image_target import ImageTarget

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImagePair:
    """Where a pair of pictures is.

    Args:
        image_id: counts from 1.
        name: the path of the input in its folder.
        path: the file of the input.
        target_path: the file of the target; the same where one file holds both side by side.
        size: (height, width) of each of the two.
        swapped: of two side by side, the right one is the input.
    """

    image_id: int
    name: str
    path: Path
    target_path: Path
    size: Size
    swapped: bool = False

    @property
    def side_by_side(self) -> bool:
        """Whether one file holds both."""
        return self.path == self.target_path

    def read(self) -> tuple[Tensor, Tensor]:
        """Input and target, ``uint8 [3, H, W]`` RGB.

        Raises:
            ImageError: a file cannot be read, or is not of the size that it was.
        """
        if not self.side_by_side:
            return self._checked(self.path), self._checked(self.target_path)
        both = self._checked(self.path)
        width = self.size[1]
        left, right = both[..., :width], both[..., width:]
        return (right, left) if self.swapped else (left, right)

    def _checked(self, path: Path) -> Tensor:
        height, width = self.size
        wanted = (height, 2 * width) if self.side_by_side else (height, width)
        pixels = read_image(path)
        if pixels.shape[:2] != wanted:
            raise ImageError(
                path,
                f"height x width is {pixels.shape[0]}x{pixels.shape[1]}, but was "
                f"{wanted[0]}x{wanted[1]} when the pairs were listed",
            )
        return torch.from_numpy(pixels).permute(2, 0, 1)


def find_pairs(folder: str | Path, *, swap: bool = False) -> list[ImagePair]:
    """List the pairs of a folder, sorted by name.

    A folder with the folders ``inputs`` and ``targets`` holds pairs of files with equal names (the
    endings may differ); any other one pictures side by side, input left and target right, as the
    data sets of pix2pix are.

    Args:
        folder: as above; searched at any depth.
        swap: make inputs of the targets.

    Raises:
        FormatError: no folder, no picture in it, a picture without a partner, or partners of
            different sizes.
        ImageError: the header of a file cannot be read, or a file of two has an odd width.
    """
    folder = Path(folder)
    inputs, targets = folder / "inputs", folder / "targets"
    if inputs.is_dir() and targets.is_dir():
        return _paired_files(*((targets, inputs) if swap else (inputs, targets)))
    if inputs.is_dir() or targets.is_dir():
        missing = "targets" if inputs.is_dir() else "inputs"
        raise FormatError(folder, f"has no folder '{missing}' beside the other one")
    pairs = []
    for i, name in enumerate(list_files(folder, IMAGE_SUFFIXES), start=1):
        path = folder / name
        height, width = image_size(path)
        if width % 2:
            raise ImageError(
                path,
                f"is {width} pixels wide, which is not two pictures side by side; put single "
                f"ones into {inputs} and {targets}",
            )
        pairs.append(ImagePair(i, name.as_posix(), path, path, (height, width // 2), swapped=swap))
    return pairs


@dataclass(frozen=True)
class Jitter:
    """The augmentation of pix2pix (section 6.2): resize, crop at random, mirror every second time.

    Args:
        resize: side in pixels that both sides are resized to (bilinear, antialiased).
        crop: side of the crop.
        mirror: also mirror left and right, with probability one half.

    Raises:
        ValueError: ``crop`` is not in 1..``resize``.
    """

    resize: int = 286
    crop: int = 256
    mirror: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"crop must be in 1..{self.resize} (resize), got {self.crop}")

    def __call__(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """Move all pictures ``uint8 [C, H, W]`` alike; draws from torch's CPU generator."""
        room = self.resize - self.crop + 1
        top, left = torch.randint(room, (2,)).tolist()
        mirrored = self.mirror and bool(torch.rand(()) < 0.5)
        moved = []
        for picture in pictures:
            resized = F.resize(picture, [self.resize, self.resize], antialias=True)
            cropped = resized[:, top : top + self.crop, left : left + self.crop]
            moved.append(cropped.flip(-1) if mirrored else cropped)
        return moved


class ImagePairs(Dataset[Sample | None]):
    """Reads pairs of pictures: the sample's image, and an `ImageTarget`.

    As with `DetectionDataset`, a sample is a pure function of ``(seed, key)``.

    Args:
        records: from `find_pairs`.
        seed: of all random draws.
        jitter: the augmentation; None gives pictures as they are.
        on_error: what a pair does that cannot be read: "raise" raises, "skip" logs a warning once
            for each and gives None.
    """

    def __init__(
        self,
        records: Sequence[ImagePair],
        *,
        seed: int,
        jitter: Jitter | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        self.records = records
        self._seed = seed
        self._jitter = jitter
        self._skip_unreadable = on_error == "skip"
        # Shared by the loader's worker processes, so that they warn once between them.
        self._warned = torch.zeros(len(records), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> Sample | None:
        """The sample of ``key``, or None where it cannot be read and is to be skipped.

        Raises:
            ImageError: a file cannot be read or has changed its size, and ``on_error="raise"``.
        """
        record = self.records[key.index]
        try:
            image, target = record.read()
        except ImageError as error:
            if not self._skip_unreadable:
                raise
            if not self._warned[key.index]:
                self._warned[key.index] = True
                _logger.warning("skipping a pair: %s", error)
            return None
        seed = sample_seed(self._seed, key.epoch, key.index)
        with reproducible(seed), naming(record.path, record.target_path):
            if self._jitter is not None:
                image, target = self._jitter((image, target))
        return Sample(
            # A view of a part would drag the whole memory to the training process.
            image=image.contiguous(),
            target=ImageTarget(target.contiguous()),
            image_id=record.image_id,
            original_size=record.size,
            path=str(record.path),
        )


def _paired_files(inputs: Path, targets: Path) -> list[ImagePair]:
    own, others = _by_name(inputs), _by_name(targets)
    for folder, names, partners in ((inputs, own, targets), (targets, others, inputs)):
        alone = sorted(str(names[key]) for key in own.keys() ^ others.keys() if key in names)
        if alone:
            more = f" and {len(alone) - 10} more" if len(alone) > 10 else ""
            raise FormatError(
                folder,
                f"{len(alone)} without a file of that name in {partners}: "
                f"{', '.join(alone[:10])}{more}",
            )
    pairs = []
    for i, (key, name) in enumerate(own.items(), start=1):
        path, target_path = inputs / name, targets / others[key]
        size, target_size = image_size(path), image_size(target_path)
        if target_size != size:
            raise FormatError(
                target_path,
                f"{target_size[0]}x{target_size[1]} (height x width), but its input {path} has "
                f"{size[0]}x{size[1]}",
            )
        pairs.append(ImagePair(i, name.as_posix(), path, target_path, size))
    return pairs


def _by_name(folder: Path) -> dict[str, Path]:
    """The files of a folder by their path in it, less the ending."""
    files: dict[str, Path] = {}
    for path in list_files(folder, IMAGE_SUFFIXES):
        key = path.with_suffix("").as_posix()
        if key in files:
            raise FormatError(folder, f"{files[key]} and {path} have one name: remove one of them")
        files[key] = path
    return files
