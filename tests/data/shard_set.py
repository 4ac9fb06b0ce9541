"""A small COCO data set with every kind of record, and a server for its shards."""

import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import tifffile

from instseg.data.shards.writer import write_shards

NAMES = ["a.jpg", "deep/er/b.v2.jpg", "ü c.PNG", "d.jpg", "e.tif", "f.jpg", "g.png"]


def make_coco(folder: Path) -> dict:
    """Images of noise under ``folder``, and their COCO dictionary."""
    rng = np.random.default_rng(5)
    images, annotations = [], []
    for i, name in enumerate(NAMES):
        height, width = int(rng.integers(30, 60)), int(rng.integers(30, 60))
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if path.suffix == ".tif":  # of a kind that only tifffile reads
            tifffile.imwrite(path, pixels.astype(np.uint16) * 257, photometric="rgb")
        else:
            path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())
        image_id = 1000 - 7 * i
        images.append(
            {"license": 3, "id": image_id, "file_name": name, "width": width, "height": height}
        )
        for k in range(0 if i == 3 else 2):
            x, y = (float(v) for v in rng.uniform(0, 15, 2))
            polygon = [x, y, x + 10.1, y, x + 10, y + 12.0, x, y + 12]
            runs = [5, 10, height * width - 15]
            annotations.append(
                {
                    "id": 2**40 - len(annotations),
                    "image_id": image_id,
                    "category_id": [90, 3, 17][(i + k) % 3],
                    "bbox": [x, y, 10.1, 12.0],
                    "area": 121.2,
                    "iscrowd": k,
                    "segmentation": {"size": [height, width], "counts": runs} if k else [polygon],
                    "attributes": {"occluded": False, "note": "höher", "score": 1e-7},
                }
            )
    return {
        "info": {"year": 2026, "description": "noise"},
        "images": images,
        "annotations": annotations[::-1],
        "categories": [
            {"id": 90, "name": "x", "supercategory": "s"},
            {"id": 3, "name": "y"},
            {"id": 17, "name": "z", "skeleton": [[1, 2]]},
        ],
        "licenses": [],
    }


def write_set(folder: Path, **settings) -> tuple[dict, Path, Path]:
    """(the COCO dictionary, its image root, the folder of its four shards)."""
    images, shards = folder / "images", folder / "shards"
    coco = make_coco(images)
    (folder / "coco.json").write_text(json.dumps(coco))
    settings = {"shard_bytes": 14_000, **settings}
    write_shards(coco, images, shards, source="coco.json", **settings)
    return coco, images, shards


class Server:
    """What a test sees of the server: its address, the requests that came, and its behaviour.

    Attributes:
        ranges: whether parts of files are served.
        failures: so many requests are answered by status 503 first.
        breaks: so many answers end after half of their bytes.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[tuple[str, str | None]] = []
        self.ranges = True
        self.failures = 0
        self.breaks = 0


@contextmanager
def serving(folder: Path):
    """An HTTP server of a folder that gives byte ranges, unlike the standard library's."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            server.requests.append((self.path, wanted))
            path = folder / self.path.lstrip("/")
            if server.failures > 0:
                server.failures -= 1
                self.send_error(503)
            elif not path.is_file():
                self.send_error(404)
            else:
                data = path.read_bytes()
                is_part = wanted is not None and server.ranges
                if is_part:
                    first, last = wanted.removeprefix("bytes=").split("-")
                    data = data[int(first) : int(last) + 1]
                self.send_response(206 if is_part else 200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                is_broken = server.breaks > 0
                server.breaks -= is_broken
                self.wfile.write(data[: len(data) // 2] if is_broken else data)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server = Server(f"http://127.0.0.1:{http.server_port}")
        Thread(target=http.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            http.shutdown()
