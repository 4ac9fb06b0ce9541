"""Instance-id images: one label image for each image, pixel value = instance, 0 = background."""

from __future__ import annotations

from pathlib import Path

from instseg.data.formats.common import Coco, CocoBuilder, Progress, Record, tracked
from instseg.data.formats.label_images import check_same_size, pair_files
from instseg.data.image_io import image_size, read_label_image
from instseg.ops.label_images import label_rles


def read(
    images: Path,
    masks: Path,
    *,
    category: str = "object",
    mask_suffix: str = "",
    on_progress: Progress | None = None,
) -> Coco:
    """Read a folder of images and a folder of instance-id images.

    An image ``a/b.jpg`` is paired with the mask ``a/b<mask_suffix>.png`` (or .bmp, .tif, .tiff).
    An id is one instance, whether its pixels are connected or not.

    Args:
        images: the image root; file names in the result are relative to it.
        masks: folder of label images of any integer depth.
        category: name of the one class.
        mask_suffix: what a mask's name has beyond its image's, such as ``"_mask"``.
        on_progress: called with (images done, images in all).

    Returns:
        A COCO dictionary with compressed RLE, tight boxes and pixel areas.

    Raises:
        FormatError: an image without mask, a mask without image, two files for one name, or a
            mask whose size is not its image's.
        ImageError: a file that cannot be decoded.
    """
    builder = CocoBuilder([category])
    for image_name, mask_name in tracked(pair_files(images, masks, mask_suffix), on_progress):
        mask_file = masks / mask_name
        size = image_size(images / image_name)
        labels = read_label_image(mask_file)
        check_same_size(mask_file, labels.shape, images / image_name, size)
        image_id = builder.add_image(Record(mask_file), image_name.as_posix(), size)
        for instance, mask in label_rles(labels):
            record = Record(mask_file, f"instance {instance}")
            builder.add_mask(record, image_id, category, mask)
    return builder.build()
