"""Fuzz `load` with malformed and hostile checkpoints.

    python scripts/verify/fuzz_checkpoints.py --folders 10000
    pip install -e '.[fuzz]' && python scripts/verify/fuzz_checkpoints.py --seconds 3600

--folders draws whole folders from tests/hostile_folders.py (hypothesis), each with one to three errors. --seconds
mutates one file at a time, its bytes or its JSON, guided by coverage (atheris, libFuzzer for Python; Linux, and Python
3.11 to 3.13). Its corpus stays in --state, for later runs to continue.

Each must end with a model, or a CheckpointError of one line that names the file: within 2 seconds of CPU time, with at
most 1.15 times the model's size in float32 plus 120 MB, and without opening a file outside the folder. All others are
kept in --state, and the exit status is 1. Needs Linux, to measure time and memory.
"""

import argparse
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from fuzz_watch import STUCK, Watch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

HARD_LIMIT = 2 * 2**30  # bytes that a process may allocate, to protect the machine
BATCH = 500  # folders per process


# Whole folders --------------------------------------------------------------------------------------------------------


def try_folders(state: Path, seed: int, n_folders: int) -> None:
    """Draw folders and load each; print the counts by outcome and the maxima as JSON. Runs in a child process."""
    import hypothesis
    from checkpoint_forms import as_bytes, good, headers_of, written
    from hostile_changes import a_file
    from hostile_folders import folders, outcome, write_folder

    resource.setrlimit(resource.RLIMIT_DATA, (HARD_LIMIT, HARD_LIMIT))
    counts: Counter[str] = Counter()
    watch = Watch()
    good_files = as_bytes(written(good(), headers_of(good())))
    with watch:
        outcome(write_folder(state / "current", {name: (a_file, content) for name, content in good_files.items()}))
    watch.usual.update(watch.opened)

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=n_folders, deadline=None, database=None, phases=[hypothesis.Phase.generate],
                         suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(folders())
    def try_one(files):
        folder = write_folder(state / "current", files)
        signal.alarm(STUCK)
        problem = ""
        with watch:
            try:
                ending = outcome(folder)
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
        signal.alarm(0)
        problem = problem or watch.complaint(folder)
        counts["failed" if problem else ending] += 1
        if problem:
            keep(state, problem)

    try_one()
    print(json.dumps({**counts, "slowest": watch.slowest, "largest": watch.largest}))


def keep(state: Path, problem: str) -> None:
    """Keep the current folder for inspection."""
    kept = state / "failed" / str(time.time_ns())
    kept.parent.mkdir(exist_ok=True)
    os.rename(state / "current", kept)
    print(f"{kept}: {problem[:300]}", file=sys.stderr, flush=True)


def attack_with_folders(state: Path, n_folders: int, first_seed: int) -> bool:
    """Load n folders in child processes and print the totals. Returns whether all ended as they must."""
    totals: Counter[str] = Counter()
    slowest, largest = 0.0, 0
    for batch, start in enumerate(range(0, n_folders, BATCH)):
        command = ["--try", str(first_seed + batch), str(min(BATCH, n_folders - start))]
        child = run_self(state, command, stdout=subprocess.PIPE)
        if child.returncode != 0:
            keep(state, f"the process ended with {child.returncode}")
            totals["failed"] += 1
            continue
        figures = json.loads(child.stdout)
        slowest, largest = max(slowest, figures.pop("slowest")), max(largest, figures.pop("largest"))
        totals.update(figures)
    print(f"{totals.total():,} folders: {totals['loaded']:,} loaded, {totals['refused']:,} refused, "
          f"{totals['failed']:,} failed; slowest {slowest:.2f} s, largest {largest / 1e6:.0f} MB")
    return totals["failed"] == 0


def run_self(state: Path, arguments: list[str], **options: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, __file__, "--state", str(state), *arguments], text=True, env=environment,
                          **options)


# One file at a time ---------------------------------------------------------------------------------------------------


def attack_with_bytes(state: Path, seconds: int) -> bool:
    """Run libFuzzer in a child process, logging to state/libfuzzer.log. Returns whether it found nothing."""
    log = state / "libfuzzer.log"
    with open(log, "a") as file:
        start = file.tell()
        child = run_self(state, ["--fuzz", str(seconds)], stdout=file, stderr=subprocess.STDOUT)
    report = log.read_text(errors="replace")[start:]
    totals_file = state / "totals.json"
    totals = json.loads(totals_file.read_text()) if totals_file.exists() else {"seconds": 0, "runs": 0}
    runs, edges = (re.findall(pattern, report) for pattern in (r"number_of_executed_units: (\d+)", r"cov: (\d+)"))
    totals = {"seconds": totals["seconds"] + seconds, "runs": totals["runs"] + int(runs[-1] if runs else 0)}
    totals_file.write_text(json.dumps(totals))
    ended = "nothing found" if child.returncode == 0 else f"FOUND something, see {log} and {state}/failed-*"
    print(f"{seconds:,} s of atheris, {totals['seconds']:,} s in all: {totals['runs']:,} runs, "
          f"{edges[-1] if edges else '?'} edges covered, {ended}")
    return child.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", type=int, metavar="N", help="the number of folders to draw")
    parser.add_argument("--seconds", type=int, metavar="S", help="how long to fuzz, guided by coverage")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of the folders (default: 0)")
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir(), "numpy_gpt2-fuzz"), metavar="FOLDER",
                        help="default: %(default)s")
    parser.add_argument("--try", type=int, nargs=2, dest="batch", help=argparse.SUPPRESS)  # what the children run
    parser.add_argument("--fuzz", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.state.mkdir(parents=True, exist_ok=True)
    if args.batch:
        return try_folders(args.state, *args.batch)
    if args.fuzz:
        from fuzz_bytes import fuzz
        return fuzz(args.state, args.fuzz)
    if not (args.folders or args.seconds):
        parser.error("expected --folders or --seconds")
    if args.seconds and find_spec("atheris") is None:
        parser.error("--seconds needs atheris: pip install -e '.[fuzz]'")
    all_well = True
    if args.folders:
        all_well &= attack_with_folders(args.state, args.folders, args.seed)
    if args.seconds:
        all_well &= attack_with_bytes(args.state, args.seconds)
    sys.exit(0 if all_well else 1)


if __name__ == "__main__":
    main()
