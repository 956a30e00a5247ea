"""One of two processes that train for an epoch; writes down what it draws at random.

python -m torch.distributed.run --nproc-per-node=2 random_draws.py CONFIG FOLDER
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
from mmengine.hooks import Hook
from torch import Tensor, nn

from dat_pp.engine import launch, train


class Spy(Hook):
    """Collects per iteration: images, augmentation, its lambda and box, and dropped branches."""

    def __init__(self) -> None:
        names = ('images', 'augment', 'lambda', 'box', 'dropped')
        self.draws: dict[str, list] = {name: [] for name in names}

    def before_train(self, runner) -> None:
        beta, randint = np.random.beta, np.random.randint

        def spied_beta(*args: float) -> float:
            self.draws['lambda'].append(beta(*args))
            return self.draws['lambda'][-1]

        def spied_randint(*args, **kwargs):
            value = randint(*args, **kwargs)
            self.draws['box'].append(np.asarray(value).tolist())
            return value

        np.random.beta, np.random.randint = spied_beta, spied_randint
        model = runner.model.module
        for augment in model.data_preprocessor.batch_augments.augments:
            self._spy_augment(augment)
        for module in model.modules():
            if type(module).__name__ == 'DropPath' and module.rate:
                module.register_forward_hook(self._after_drop_path)

    def _spy_augment(self, augment) -> None:
        mix = augment.mix

        def spied_mix(*args):
            self.draws['augment'].append(type(augment).__name__)
            return mix(*args)

        augment.mix = spied_mix

    def _after_drop_path(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.draws['dropped'].append((output.flatten(1) == 0).all(1).tolist())

    def before_train_iter(self, runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self.draws['images'] += [sample.img_path for sample in data_batch['data_samples']]


def main() -> None:
    config, folder = sys.argv[1], Path(sys.argv[2])
    spy = Spy()
    build = launch.build_runner

    def build_with_spy(cfg):
        runner = build(cfg)
        runner.register_hook(spy, 'VERY_LOW')
        return runner

    train.build_runner = build_with_spy
    arch = 'model.backbone.arch._delete_=True model.backbone.arch.embed_dims=[8,8,16,16] '
    arch += 'model.backbone.arch.mixers=[N,N,D,D] model.backbone.arch.num_heads=[1,1,2,2]'
    options = 'model.head.in_channels=16 train_dataloader.batch_size=2 train_cfg.max_epochs=1 '
    options += 'train_dataloader.num_workers=0 train_dataloader.dataset.pipeline.1.scale=64 '
    options += 'param_scheduler=None optim_wrapper._delete_=True optim_wrapper.type=OptimWrapper '
    options += 'optim_wrapper.optimizer.type=SGD optim_wrapper.optimizer.lr=0.1'
    arguments = [config, '--launcher', 'pytorch', '--no-validate', '--work-dir', str(folder / 'w')]
    train.main([*arguments, '--cfg-options', *arch.split(), *options.split()])
    (folder / f'draws_{os.environ["RANK"]}.json').write_text(json.dumps(spy.draws))


if __name__ == '__main__':
    main()
