"""COCO evaluation of result files against pycocotools: time and peak memory.

    python -m benchmarks.evaluation [--rounds 3] [--images 5000 --objects 36000 --detections 500000]

Each side runs in a process of its own, the sides in turn: reading both files counts, importing does
not, neither for the time nor for the memory, most of which torch takes. Prints and writes
results/evaluation.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIDES = ("instseg", "instseg with intervals", "pycocotools")
KINDS = {"boxes": "bbox", "masks": "segm"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--objects", type=int, default=36_000)
    parser.add_argument("--detections", type=int, default=500_000)
    parser.add_argument("--data", type=Path, help="keep the generated files in this folder")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.data, args.kind)))
        return
    # Imported late: pycocotools' process must not hold torch.
    from benchmarks.common import write
    from benchmarks.detections import write_data_set

    with tempfile.TemporaryDirectory() as scratch:
        folder = args.data or Path(scratch)
        sizes = {name: getattr(args, name) for name in ("images", "objects", "detections")}
        write_data_set(folder, **sizes)
        runs = [
            {"kind": kind, "side": side, **_in_a_process(side, folder, kind)}
            for kind in KINDS
            for _ in range(args.rounds)
            for side in SIDES
        ]
    rows = [_row(runs, kind, side) for kind in KINDS for side in SIDES[:2]]
    for row in rows:
        print(row)
    command = f"python -m benchmarks.evaluation --rounds {args.rounds}"
    print(write("evaluation", {"command": command, **sizes, "rows": rows, "runs": runs}))


def _in_a_process(side: str, folder: Path, kind: str) -> dict[str, float]:
    own = [sys.executable, "-m", "benchmarks.evaluation"]
    own += ["--side", side, "--data", str(folder), "--kind", kind]
    done = subprocess.run(own, check=True, capture_output=True, text=True)
    run: dict[str, float] = json.loads(done.stdout)
    print(kind, side, run, file=sys.stderr, flush=True)
    return run


def measure(side: str, folder: Path, kind: str) -> dict[str, float]:
    """Seconds and peak memory without imports, what the imports take, and AP."""
    gt, dt = folder / "gt.json", folder / f"{kind}.json"
    if side == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        imports, started = _peak(), time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(gt))
            evaluation = COCOeval(truth, truth.loadRes(str(dt)), KINDS[kind])
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        ap = float(evaluation.stats[0])
    else:
        from instseg.cli.evaluate import main as eval_coco

        out = folder / "scores.json"
        arguments = [
            "--gt",
            str(gt),
            "--dt",
            str(dt),
            "--iou-type",
            KINDS[kind],
            "--json",
            str(out),
        ]
        arguments += [] if side.endswith("intervals") else ["--replicates", "0"]
        imports, started = _peak(), time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            if eval_coco(arguments) != 0:
                raise SystemExit("eval_coco failed")
        ap = json.loads(out.read_text())[KINDS[kind]]["stats"]["AP"]
    seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 3),
        "mib": round(_peak() - imports),
        "imports_mib": round(imports),
        "AP": ap,
    }


def _peak() -> float:
    """The process's peak memory in MiB; `getrusage` would tell its parent's where that was more."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _row(runs: list[dict[str, object]], kind: str, side: str) -> dict[str, object]:
    def column(name: str, of: str) -> list[float]:
        return [float(str(r[name])) for r in runs if r["kind"] == kind and r["side"] == of]

    pairs = zip(column("seconds", "pycocotools"), column("seconds", side), strict=True)
    memory = statistics.median(column("mib", "pycocotools"))
    own = statistics.median(column("mib", side))
    return {
        "kind": kind,
        "side": side,
        "seconds": statistics.median(column("seconds", side)),
        "pycocotools_seconds": statistics.median(column("seconds", "pycocotools")),
        "speedup": round(statistics.median(p / o for p, o in pairs), 1),
        "mib": own,
        "pycocotools_mib": memory,
        "memory_ratio": round(own / max(memory, 1), 3),
        "AP_difference": abs(column("AP", side)[0] - column("AP", "pycocotools")[0]),
    }


if __name__ == "__main__":
    main()
