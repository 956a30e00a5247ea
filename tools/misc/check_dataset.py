"""Check that the data of a config exists, is complete and can be read, before training."""

import sys

from dat_pp.engine.check_dataset import main
from dat_pp.engine.errors import run_main

if __name__ == '__main__':
    sys.exit(run_main(main))
