"""Parameters and FLOPs of a config's model."""

import sys

from dat_pp.engine.errors import run_main
from dat_pp.engine.flops import main

if __name__ == '__main__':
    sys.exit(run_main(main))
