"""Train, and write down what this process draws at random; arguments as of tools/train.py.

    python -m torch.distributed.run --nproc-per-node=2 random_draws.py CONFIG --launcher pytorch

The config's ``custom_hooks`` must have the hook ``RecordDraws``.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from dat_pp.engine import train


@HOOKS.register_module()
class RecordDraws(Hook):
    """Record the images, the augmentations with their lambdas and boxes, and dropped branches.

    Args:
        folder: Where each process writes ``draws_<rank>.json``.
    """

    priority = 'VERY_LOW'

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        names = ('images', 'augment', 'lambda', 'box', 'dropped')
        self.draws: dict[str, list] = {name: [] for name in names}

    def before_train(self, runner: Runner) -> None:
        self._record(np.random, 'beta', 'lambda', float)
        self._record(np.random, 'randint', 'box', lambda value: np.asarray(value).tolist())
        model = runner.model.module
        for augment in model.data_preprocessor.batch_augments.augments:
            name = type(augment).__name__
            self._record(augment, 'mix', 'augment', lambda _, name=name: name)
        for module in model.modules():
            if type(module).__name__ == 'DropPath' and module.rate:
                module.register_forward_hook(self._after_drop_path)

    def _record(self, owner: object, function: str, name: str, shown: callable) -> None:
        original = getattr(owner, function)

        def recording(*args, **kwargs):
            result = original(*args, **kwargs)
            self.draws[name].append(shown(result))
            return result

        setattr(owner, function, recording)

    def _after_drop_path(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.draws['dropped'].append((output.flatten(1) == 0).all(1).tolist())

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        self.draws['images'] += [sample.img_path for sample in data_batch['data_samples']]

    def after_train(self, runner: Runner) -> None:
        path = self.folder / f'draws_{os.environ["RANK"]}.json'
        path.write_text(json.dumps(self.draws))


if __name__ == '__main__':
    train.main(sys.argv[1:])
