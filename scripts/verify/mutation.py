"""The results of scripts/verify/mutation.sh, read from mutmut's folder `mutants` in the current folder.

    python scripts/verify/mutation.py report               counts by module; survivors that are not explained
    python scripts/verify/mutation.py forget-survivors     make `mutmut run` try them again

A survivor is explained by an entry in mutation_survivors.txt in this folder, followed by a blank line. Entries are
matched by function and changed line, wherever these have moved to:

    sampling.keep_top_k
    - the line in the module
    + the line as mutmut changed it
    Why no test can tell them apart.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Iterator

from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code

PACKAGE = "numpy_gpt2"
EXPLAINED = Path(__file__).with_name("mutation_survivors.txt")
COLUMNS = ("mutants", "killed", "equivalent", "survived", "not tried")
KIND_OF_STATUS = {"killed": "killed", "timeout": "killed", "segfault": "killed", "suspicious": "killed",
                  "survived": "survived", "no tests": "survived"}  # any other status is no verdict

Change = tuple[str, ...]  # module.function, then the removed (-) and added (+) lines


def modules() -> Iterator[SourceFileMutationData]:
    """mutmut's data on each module: `exit_code_by_key` has the verdict on each mutant by name."""
    for path in sorted(Path("mutants", PACKAGE).rglob("*.meta")):
        data = SourceFileMutationData(path=path.relative_to("mutants").with_suffix("").as_posix())
        data.load()
        yield data


def forget_survivors() -> None:
    """Delete the verdicts on all survivors, so that new tests are tried on them."""
    for data in modules():
        for name, exit_code in data.exit_code_by_key.items():
            if exit_code is not None and status_by_exit_code[exit_code] != "killed":
                data.exit_code_by_key[name] = None
        data.save()


def change_of(name: str, path: str) -> Change:
    """numpy_gpt2.ops.x_softmax__mutmut_3 -> ("ops.softmax", "- total = ...", "+ total = None")."""
    module, _, function = name.removeprefix(f"{PACKAGE}.").rpartition(".")
    function = function.rpartition("__mutmut_")[0].replace("xǁ", "").replace("ǁ", ".").removeprefix("x_")
    lines = get_diff_for_mutant(name, path=path).splitlines()[2:]
    return f"{module}.{function}", *(f"{line[0]} {line[1:].strip()}" for line in lines if line[:1] in ("-", "+"))


def explained_changes() -> set[Change]:
    entries = EXPLAINED.read_text(encoding="utf-8").split("\n\n")
    return {tuple(line for i, line in enumerate(entry.strip().splitlines()) if i == 0 or line[:2] in ("- ", "+ "))
            for entry in entries if not entry.startswith("#")}


def report() -> int:
    """Print the figures, the survivors that are not explained, the explained that do not survive; return the status."""
    explained, seen = explained_changes(), set()
    unexplained: list[tuple[str, Change]] = []
    print(f"{'module':24}" + "".join(f"{column:>12}" for column in COLUMNS))
    total: Counter[str] = Counter()
    for data in modules():
        counts = Counter(mutants=len(data.exit_code_by_key))
        for name, exit_code in data.exit_code_by_key.items():
            kind = KIND_OF_STATUS.get(status_by_exit_code[exit_code], "not tried")
            if kind == "survived":
                change = change_of(name, str(data.path))
                seen.add(change)
                if change in explained:
                    kind = "equivalent"
                else:
                    unexplained.append((name, change))
            counts[kind] += 1
        if counts["mutants"]:
            module = str(Path(data.path).relative_to(PACKAGE).with_suffix(""))
            print(f"{module:24}" + "".join(f"{counts[column]:12,}" for column in COLUMNS))
        total += counts
    print(f"{'in all':24}" + "".join(f"{total[column]:12,}" for column in COLUMNS))
    n_tried = total["mutants"] - total["not tried"]
    print(f"{n_tried:,} changes tried: {total['killed']:,} killed ({total['killed'] / max(1, n_tried):.1%}), "
          f"{total['equivalent']:,} that change nothing, {total['survived']:,} without a reason")
    for name, change in unexplained:
        print("", name, *change, sep="\n")
    outdated = set() if total["not tried"] else explained - seen
    for change in sorted(outdated):
        print("", "explained, but does not survive:", *change, sep="\n")
    return 1 if unexplained or outdated else 0  # where what changes nothing is killed, the tests fail for other reasons


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["report", "forget-survivors"])
    if parser.parse_args().command == "report":
        sys.exit(report())
    forget_survivors()
