"""Time and memory of models and operators, measured in turn in one process."""

import sys

from dat_pp.benchmark.run import main
from dat_pp.engine.errors import run_main

if __name__ == '__main__':
    sys.exit(run_main(main))
