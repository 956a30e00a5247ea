"""Write the model tables of configs/*/README.md and the numbers behind them."""

import sys

from dat_pp.engine.errors import run_main
from dat_pp.engine.model_zoo import main

if __name__ == '__main__':
    sys.exit(run_main(main))
