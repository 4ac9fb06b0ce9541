"""`instseg dataset shard`: write a COCO data set as tar shards."""

from __future__ import annotations

import argparse
from pathlib import Path

from instseg.cli.progress_bar import progress_bar
from instseg.data.coco import load_coco
from instseg.data.shards.open import DATASET_FILE
from instseg.data.shards.writer import write_shards


def add_shard(parser: argparse.ArgumentParser) -> None:
    """Give the parser its arguments, and ``run``, which takes them."""
    parser.description = (
        "Write a COCO data set as tar files in the WebDataset layout, each with an index beside "
        f"it, and {DATASET_FILE}. Copy the folder to an object store as it is, and train on it "
        "with data.train: {format: shards, folder: s3://bucket/folder}."
    )
    parser.add_argument("annotations", type=Path, help="the COCO JSON file")
    parser.add_argument("--images", type=Path, required=True, help="the image root")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--shard-size", type=float, default=256.0, metavar="MIB", help="of one shard, at most [256]"
    )
    parser.add_argument(
        "--shuffle", type=int, metavar="SEED", help="write the images in a random order"
    )
    parser.set_defaults(run=_shard)


def _shard(args: argparse.Namespace) -> int:
    if args.shard_size <= 0:
        raise ValueError(f"--shard-size must be over 0, got {args.shard_size:g}")
    coco = load_coco(args.annotations)
    with progress_bar("writing") as on_progress:
        dataset = write_shards(
            coco,
            args.images,
            args.output,
            source=str(args.annotations),
            shard_bytes=int(args.shard_size * 2**20),
            shuffle_seed=args.shuffle,
            on_progress=on_progress,
        )
    print(
        f"{args.output}: {len(coco['images'])} images, {len(coco['annotations'])} objects in "
        f"{len(dataset.shards)} shards"
    )
    return 0
