"""Data sets as tar files in the WebDataset layout, on disk or in an object store.

A data set is a folder (or the address of one) with `dataset.json` and its shards. In a shard each
image ``KEY.jpg`` is followed by ``KEY.json``, its COCO records. `open.open_shards` makes a COCO
dictionary of them; an image is read by its name ``shard-000003.tar#KEY.jpg``.
"""
