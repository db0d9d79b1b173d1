"""`python scripts/bench`: see run.py, or --help."""

import sys
from pathlib import Path

from numpy_gpt2.cli import exits

sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))  # for experiment.py

if __name__ == "__main__":
    from run import main
    exits.run(main)
