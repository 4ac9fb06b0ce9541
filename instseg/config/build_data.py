"""From the configuration's ``data`` section to an index of records, and to transforms."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, assert_never

from instseg.config.build_shards import open_shard_source
from instseg.config.index_progress import indexing_bar
from instseg.config.loader import ConfigError
from instseg.config.schema_data import (
    DataConfig,
    ElasticConfig,
    ExpandConfig,
    HorizontalFlipConfig,
    HsvJitterConfig,
    IntensityJitterConfig,
    IoUCropConfig,
    LargeScaleJitterConfig,
    LetterboxConfig,
    PhotometricDistortConfig,
    RandomCropConfig,
    RandomWindowConfig,
    ResizeConfig,
    ResizeShortestEdgeConfig,
    Rotation90Config,
    TransformConfig,
    VerticalFlipConfig,
)
from instseg.config.schema_source import (
    CocoSource,
    ImagePairsSource,
    InstancePngSource,
    LabelmeSource,
    SemanticPngSource,
    ShardsSource,
    Source,
    ViaSource,
    VocSource,
    YoloSource,
)
from instseg.data.folds import take_fold, take_names
from instseg.data.formats import instance_png, labelme, semantic_png, via, voc, yolo
from instseg.data.formats.common import FormatError
from instseg.data.image_pairs import ImagePair, find_pairs
from instseg.data.index import CocoIndex, build_index
from instseg.data.index_cache import MIN_BYTES, cached_index
from instseg.data.json_stream import stream_coco
from instseg.data.shards.open import DATASET_FILE, name_members
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
    PhotometricDistort,
    RandomCrop,
    RandomHorizontalFlip,
    RandomRotation90,
    RandomVerticalFlip,
    RandomWindow,
    Resize,
    ResizeShortestEdge,
    SimpleCopyPaste,
)

_logger = logging.getLogger(__name__)


def read_pairs(source: Source) -> list[ImagePair]:
    """Read a data set of pairs of pictures.

    Raises:
        ConfigError: it is another one, or no pair of it is chosen.
        FormatError, ImageError: the files cannot be used; see their messages.
    """
    if not isinstance(source, ImagePairsSource):
        raise ConfigError(f"data: the model pix2pix needs format image_pairs, not {source.format}")
    pairs = find_pairs(source.folder, swap=source.swap)
    images = [{"id": pair.image_id, "file_name": pair.name} for pair in pairs]
    coco = _chosen(source, {"images": images, "annotations": []}, str(source.folder))
    chosen = {image["id"] for image in coco["images"]}
    if not chosen:
        raise ConfigError(f"{source.folder}: no pair of pictures is left by fold")
    return [pair for pair in pairs if pair.image_id in chosen]


def read_index(source: Source, *, need_masks: bool) -> CocoIndex:
    """Read a data set of any format; a warning says what is left out of it, and why.

    The index of a large COCO file is kept for the next time (see `instseg.data.index_cache`).

    Raises:
        AnnotationError, FormatError, OSError: the files cannot be used; see their messages.
        ConfigError: the data set is none of objects, or no image of it is chosen.
    """
    if isinstance(source, CocoSource | ShardsSource):
        name, annotations, root, min_bytes = _large(source)
        with indexing_bar(name) as on_record:
            index = cached_index(
                annotations,
                root,
                lambda: _chosen(source, _read(source)[0], name),
                source=name,
                need_masks=need_masks,
                selection=repr((source.include, source.exclude, source.fold)),
                on_record=on_record,
                min_bytes=min_bytes,
            )
    else:
        coco, root, name = _read(source)
        coco = _chosen(source, coco, name)
        with indexing_bar(name) as on_record:
            index = build_index(coco, root, source=name, need_masks=need_masks, on_record=on_record)
    level = logging.INFO if index.is_whole else logging.WARNING
    _logger.log(level, "%s: %s", name, index.summary())
    return index


def _large(source: CocoSource | ShardsSource) -> tuple[str, Path, Path, int]:
    """(name for messages, annotation file, image root, from which size on its index is kept)."""
    if isinstance(source, CocoSource):
        return str(source.annotations), source.annotations, source.images, MIN_BYTES
    folder = open_shard_source(source).folder
    return source.folder, folder / DATASET_FILE, folder, 0  # the small file stands for all shards


def _chosen(source: Source, coco: dict[str, Any], name: str) -> dict[str, Any]:
    """The part of a COCO dictionary that the source asks for."""
    if source.include is not None or source.exclude is not None:
        coco = take_names(coco, include=source.include, exclude=source.exclude or [])
        if not coco["images"]:
            raise ConfigError(f"{name}: no image is left by include and exclude")
    if source.fold is not None:
        fold = source.fold
        coco = take_fold(coco, folds=fold.folds, index=fold.index, part=fold.part)
    return name_members(coco) if isinstance(source, ShardsSource) else coco


def _read(source: Source) -> tuple[dict[str, Any], Path, str]:
    """(COCO dictionary, image root, name for messages)."""
    match source:
        case CocoSource():
            return stream_coco(source.annotations), source.images, str(source.annotations)
        case ShardsSource():
            shards = open_shard_source(source)
            return shards.coco_with_members(), shards.folder, source.folder
        case InstancePngSource():
            coco = instance_png.read(
                source.images,
                source.masks,
                category=source.category,
                mask_suffix=source.mask_suffix,
            )
            return coco, source.images, str(source.masks)
        case SemanticPngSource():
            try:
                coco = semantic_png.read(
                    source.images,
                    source.masks,
                    classes=source.classes,
                    background=source.background,
                    ignore=source.ignore,
                    mask_suffix=source.mask_suffix,
                    category=source.category,
                )
            except FormatError:
                raise
            except ValueError as error:
                raise ConfigError(f"{source.masks}: {error}") from None
            return coco, semantic_png.image_root(source.images), str(source.masks)
        case VocSource():
            coco = voc.read(source.root, split=source.split, categories=source.categories)
            return coco, source.root / "JPEGImages", str(source.root)
        case YoloSource():
            coco = yolo.read(source.images, source.labels, names=source.names)
            return coco, source.images, str(source.labels)
        case LabelmeSource():
            coco = labelme.read(source.folder, categories=source.categories)
            return coco, source.folder, str(source.folder)
        case ViaSource():
            coco = via.read(
                source.file,
                source.images,
                attribute=source.attribute,
                category=source.category,
                categories=source.categories,
            )
            return coco, source.images, str(source.file)
        case ImagePairsSource():
            raise ConfigError(
                f"data: format image_pairs ({source.folder}) has no objects: it is for the model "
                "pix2pix"
            )
        case _:
            assert_never(source)


def build_transforms(sections: Sequence[TransformConfig]) -> Compose:
    """The transforms in their order."""
    return Compose([_transform(section) for section in sections])


def _transform(section: TransformConfig) -> Any:
    match section:
        case ResizeShortestEdgeConfig():
            return ResizeShortestEdge(section.sizes, section.max_size)
        case ResizeConfig():
            return Resize(section.all_sizes(), antialias=section.antialias)
        case LetterboxConfig():
            return Letterbox(section.all_sizes(), antialias=section.antialias)
        case HorizontalFlipConfig():
            return RandomHorizontalFlip(section.p)
        case LargeScaleJitterConfig():
            return LargeScaleJitter(
                (section.height, section.width),
                min_scale=section.min_scale,
                max_scale=section.max_scale,
            )
        case RandomCropConfig():
            return RandomCrop(section.min_scale, min_visibility=section.min_visibility)
        case ExpandConfig():
            return Expand(section.p, section.max_scale)
        case IoUCropConfig():
            return IoUCrop(
                section.min_scale,
                min_ious=section.min_ious,
                max_aspect_ratio=section.max_aspect_ratio,
            )
        case PhotometricDistortConfig():
            return PhotometricDistort(p=section.p)
        case HsvJitterConfig():
            return HsvJitter(section.hue, section.saturation, section.value)
        case VerticalFlipConfig():
            return RandomVerticalFlip(section.p)
        case Rotation90Config():
            return RandomRotation90(section.p)
        case RandomWindowConfig():
            return RandomWindow((section.height, section.width))
        case ElasticConfig():
            return ElasticDeformation(
                section.sigma,
                section.grid,
                rotation=section.rotation,
                scale=(section.min_scale, section.max_scale),
                p=section.p,
            )
        case IntensityJitterConfig():
            return IntensityJitter(section.brightness, section.contrast, section.gamma, section.p)
        case _:
            assert_never(section)


def build_read_mixes(data: DataConfig) -> list[MixTransform]:
    """What mixes images as they are read, in its order: mosaic, then MixUp of mosaics."""
    mixes: list[MixTransform] = []
    if (mosaic := data.mosaic) is not None:
        mixes.append(
            Mosaic(
                (mosaic.height, mosaic.width),
                p=mosaic.p,
                min_scale=mosaic.min_scale,
                max_scale=mosaic.max_scale,
                max_shift=mosaic.max_shift,
                min_visibility=mosaic.min_visibility,
            )
        )
    if (mixup := data.mixup) is not None:
        mixes.append(
            MixUp(
                p=mixup.p,
                min_scale=mixup.min_scale,
                max_scale=mixup.max_scale,
                min_visibility=mixup.min_visibility,
            )
        )
    return mixes


def build_transformed_mixes(data: DataConfig) -> list[MixTransform]:
    """What mixes samples after their transforms: copy-paste."""
    return [] if data.copy_paste is None else [SimpleCopyPaste(p=data.copy_paste.p)]
