"""A hook that records the loss of each global batch, averaged over all processes."""

import json
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module(force=True)
class RecordLosses(Hook):
    def before_train(self, runner: Runner) -> None:
        self.losses: list[float] = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        loss = outputs['loss'].detach().to(torch.float64).clone()
        all_reduce(loss, op='mean')
        self.losses.append(loss.item())

    def after_train(self, runner: Runner) -> None:
        if is_main_process():
            Path(runner.work_dir, 'losses.json').write_text(json.dumps(self.losses))
