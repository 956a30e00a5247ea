"""Show what a model's deformable attention looks at."""

import sys

from dat_pp.engine.errors import run_main
from dat_pp.explain.run import main

if __name__ == '__main__':
    sys.exit(run_main(main))
