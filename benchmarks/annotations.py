"""Large annotation files: what their index takes to build, to open and to share with workers.

    python -m benchmarks.annotations [--sets coco lvis objects365] [--workers 8]
                                     [--start fork spawn] [--images N --objects N] [--data FOLDER]

Files of the size of the named sets are generated: polygons of COCO's length (boxes alone for
Objects365), one annotation in a hundred a crowd, images of no bytes, as none is opened. Memory is
the sum of the proportional set sizes (Pss of /proc/PID/smaps_rollup) of a training process and its
loader workers after an epoch in which every record was made, less that of the same processes over
nine records. Building, opening and each epoch run in processes of their own. Prints and writes
results/annotations.json. Objects365's size takes 12 GB of memory and 5 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from benchmarks.annotation_files import SETS, SetSize, write_set
from benchmarks.common import write
from instseg.data.dataset import Sample, instances_of
from instseg.data.index import CocoIndex
from instseg.data.index_cache import cached_index
from instseg.data.json_stream import stream_coco
from instseg.data.loader import DetectionLoader
from instseg.data.records import Records
from instseg.data.sampling import SampleKey, TrainBatchSampler

SIDES = ("build", "open", "epoch")
FEW = 9  # records of the processes without a data set
OPENINGS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["coco"])
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--start", nargs="+", choices=("fork", "spawn"), default=["fork", "spawn"])
    parser.add_argument("--images", type=int, help="instead of the sets' own numbers")
    parser.add_argument("--objects", type=int, help="instead of the sets' own numbers")
    parser.add_argument("--data", type=Path, help="where the files are written and removed again")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--few", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args)))
        return
    rows = []
    for name in args.sets:
        own = SETS[name]
        size = own._replace(images=args.images or own.images, objects=args.objects or own.objects)
        with tempfile.TemporaryDirectory(dir=args.data) as folder:
            rows.append({"set": name, **size._asdict(), **_row(Path(folder), name, size, args)})
        print(rows[-1])
    command = f"python -m benchmarks.annotations {' '.join(sys.argv[1:])}".strip()
    print(write("annotations", {"command": command, "workers": args.workers, "rows": rows}))


def _row(folder: Path, name: str, size: SetSize, args: argparse.Namespace) -> dict[str, Any]:
    started = time.perf_counter()
    write_set(folder, size)
    print(f"{name}: written in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    options = ["--sets", name, "--folder", str(folder), "--workers", str(args.workers)]
    build = _in_a_process(folder, [*options, "--side", "build"])
    opened = [_in_a_process(folder, [*options, "--side", "open"]) for _ in range(OPENINGS)]
    row = {
        "file_mib": round((folder / "instances.json").stat().st_size / 2**20),
        "index_mib": round(sum(p.stat().st_size for p in _cache(folder).iterdir()) / 2**20),
        **build,
        "open_seconds": round(statistics.median(o["seconds"] for o in opened), 3),
    }
    for start in args.start:
        epoch = [*options, "--side", "epoch", "--start", start]
        whole, few = _in_a_process(folder, epoch), _in_a_process(folder, [*epoch, "--few"])
        row[f"{start}_mib"] = round(whole["mib"] - few["mib"])
        row[f"{start}_mib_without_data_set"] = round(few["mib"])
        row[f"{start}_epoch_seconds"] = whole["seconds"]
    return row


def _in_a_process(folder: Path, options: list[str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.annotations", *options],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "INSTSEG_CACHE": str(_cache(folder))},
    )
    figures: dict[str, float] = json.loads(done.stdout)
    print(*options, figures, file=sys.stderr, flush=True)
    return figures


def _cache(folder: Path) -> Path:
    return folder / "cache"


def measure(args: argparse.Namespace) -> dict[str, float]:
    """One side's figures; imports do not count."""
    (name,) = args.sets
    need_masks = not SETS[name].boxes_only
    before, started = _memory("VmRSS"), time.perf_counter()
    index = _open(args.folder, need_masks)
    seconds = round(time.perf_counter() - started, 3)
    if args.side == "open":
        return {"seconds": seconds}
    if args.side == "build":
        return {
            "build_seconds": seconds,
            "build_peak_mib": round(_memory("VmHWM") - before),
            "kept_after_build_mib": round(_memory("VmRSS") - before),
        }
    (start,) = args.start
    multiprocessing.set_start_method(start)
    return _epoch(index, args.workers, FEW if args.few else len(index.records), need_masks)


def _open(folder: Path, need_masks: bool) -> CocoIndex:
    file = folder / "instances.json"
    return cached_index(
        file,
        folder / "images",
        lambda: stream_coco(file),
        source=str(file),
        need_masks=need_masks,
    )


class _Truth(Dataset[Sample | None]):
    """Makes the objects of a record as a data set does, and skips the image."""

    def __init__(self, records: Records, *, with_masks: bool) -> None:
        self._records = records
        self._with_masks = with_masks

    def __getitem__(self, key: SampleKey) -> None:
        instances_of(self._records[key.index], with_masks=self._with_masks)


def _epoch(index: CocoIndex, workers: int, count: int, with_masks: bool) -> dict[str, float]:
    sampler = TrainBatchSampler(index.records.sizes[:count], batch_size=16, seed=0)
    truth = _Truth(index.records, with_masks=with_masks)
    loader = DetectionLoader(truth, sampler, num_workers=workers)
    started = time.perf_counter()
    for _ in loader.epoch(0):
        pass
    seconds = round(time.perf_counter() - started, 1)
    workers_ids = [child.pid for child in multiprocessing.active_children()]
    if len(workers_ids) != workers:
        raise SystemExit(f"{len(workers_ids)} of {workers} workers are left to measure")
    return {"mib": sum(_pss(pid) for pid in ("self", *workers_ids)), "seconds": seconds}


def _memory(key: str) -> float:
    """A figure of /proc/self/status in MiB."""
    return _field(Path("/proc/self/status"), key)


def _pss(pid: int | str | None) -> float:
    """The proportional set size of a process in MiB."""
    return _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss")


def _field(file: Path, key: str) -> float:
    return int(file.read_text().split(f"{key}:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
