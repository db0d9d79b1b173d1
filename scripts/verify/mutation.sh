#!/usr/bin/env bash
# Can the tests fail? mutmut changes one thing in one function of the package, and runs the tests that reach this
# function until one fails; thousands of times over. A change that no test notices is a survivor: a test is missing, or
# the change is none. scripts/verify/mutation_survivors.txt says of each survivor why it is none.
#
#     pip install -e '.[mutation]'
#     scripts/verify/mutation.sh                                       # an hour or two of one core
#     scripts/verify/mutation.sh 'numpy_gpt2.sampling.*'               # one module, from its beginning
#
# Which modules and which tests: setup.cfg, [mutmut]. All happens in a copy of this tree, in $STATE. What is known there
# stays known: a run that was stopped goes on where it was, and after an edit the changed functions are tried again, and
# all survivors. To begin anew, remove the folder. Exit status 1: a survivor that is not explained, or none where one is.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
state=${STATE:-${TMPDIR:-/tmp}/numpy_gpt2-mutation}

mkdir -p "$state"
cd "$state"
rm -rf numpy_gpt2 tests scripts mutants/tests mutants/mutmut-stats.json
cp -rp "$root"/{numpy_gpt2,tests,scripts,setup.cfg,pyproject.toml,README.md} .  # with their times, by which mutmut goes
python "$root/scripts/verify/mutation.py" forget-survivors

export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
ulimit -v 8000000  # KiB; a changed number may ask for all of memory
nice mutmut run --max-children 1 "$@"
python "$root/scripts/verify/mutation.py" report
