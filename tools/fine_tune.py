"""Fine-tune a model on a dataset of one's own: check it, write a project, train."""

import sys

from dat_pp.engine.errors import run_main
from dat_pp.engine.fine_tune.run import main

if __name__ == '__main__':
    sys.exit(run_main(main))
