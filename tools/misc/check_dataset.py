"""Check that the data a config names is there, complete and readable, before anybody trains."""

import sys

from dat_pp.engine.check_dataset import main
from dat_pp.engine.errors import run_main

if __name__ == '__main__':
    sys.exit(run_main(main))
