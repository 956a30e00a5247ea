"""Convert a published DAT or DAT++ checkpoint to a file that a config here loads, name for name."""

import sys

from dat_pp.engine.convert import main
from dat_pp.engine.errors import run_main

if __name__ == '__main__':
    sys.exit(run_main(main))
