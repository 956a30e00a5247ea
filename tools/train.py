"""Train a classifier, detector or segmentor: the config's ``default_scope`` says which."""

import sys

from dat_pp.engine.errors import run_main
from dat_pp.engine.train import main

if __name__ == '__main__':
    sys.exit(run_main(main))
