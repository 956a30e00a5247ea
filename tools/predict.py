"""Predict for images and videos with a trained model."""

import sys

from dat_pp.apis.run import main
from dat_pp.engine.errors import run_main

if __name__ == '__main__':
    sys.exit(run_main(main))
