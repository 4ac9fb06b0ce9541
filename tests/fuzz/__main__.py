"""Read many malformed inputs: `python -m tests.fuzz --inputs 100000`; see `targets` for what.

Exit status 0: only documented errors came out, nothing outside the given folders was touched, and
time and memory stayed within bounds. Otherwise 1, and each input that did not is kept in a file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from .runner import Report, examine, make_inputs
from .targets import TARGETS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="in all, at least [100000]")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs [0]")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--number", type=int, help="read this input of each target alone")
    parser.add_argument(
        "--failures", type=Path, default=Path("runs/fuzz"), help="folder for failing inputs"
    )
    args = parser.parse_args(argv)
    shares = sum(TARGETS[name].share for name in args.targets)
    print(f"{'target':14}{'inputs':>8}{'refused':>9}{'wall s':>8}{'slowest s':>10}{'MB':>6}  found")
    reports: dict[str, Report] = {}
    for name in args.targets:
        target = TARGETS[name]
        count = -(-args.inputs * target.share // shares)
        inputs = make_inputs(name, target, count, args.seed)
        if args.number is not None:
            inputs = (i for i in make_inputs(name, target, args.number + 1, args.seed)
                      if i[0] == args.number)  # fmt: skip
        start = time.perf_counter()
        report = reports[name] = examine(target, inputs)
        print(
            f"{name:14}{report.inputs:8}{report.refused:9}{time.perf_counter() - start:8.1f}"
            f"{report.seconds:10.3f}{report.megabytes:6.0f}  {len(report.failures)}",
            flush=True,
        )
        _keep(name, report, args.failures)
    found = sum(len(report.failures) for report in reports.values())
    print(f"{sum(r.inputs for r in reports.values())} inputs, {found} findings")
    return 1 if found else 0


def _keep(name: str, report: Report, folder: Path) -> None:
    for number, data, problem in report.failures[:20]:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name.replace(' ', '_')}-{number}.bin"
        path.write_bytes(bytes.fromhex(data))
        last = problem.strip().splitlines()[-1]
        print(f"  input {number} ({path}): {last:.200}")
        path.with_suffix(".txt").write_text(problem)


if __name__ == "__main__":
    raise SystemExit(main())
