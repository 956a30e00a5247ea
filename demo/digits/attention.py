"""Draw what the deformable attention of the trained classifier looks at.

python -m demo.digits.attention CONFIG CHECKPOINT PREDICTIONS.pkl FIGURE.png
"""

import pickle
import sys
from pathlib import Path

from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from mmpretrain import get_model

from dat_pp.explain import gallery_figure, save, trace

from .figures import caption, choose, read_image


def main(config: str, checkpoint: str, predictions: str, path: str) -> None:
    samples = choose(pickle.loads(Path(predictions).read_bytes()), count=8, mistakes=1)
    model = get_model(config, pretrained=checkpoint)
    init_default_scope('mmpretrain')
    pipeline = Compose(model._config.test_dataloader.dataset.pipeline)
    data = [pipeline(dict(img_path=sample['img_path'])) for sample in samples]
    images = [read_image(Path(sample['img_path'])) for sample in samples]
    titles = [caption(sample) for sample in samples]
    title = 'What the deformable attention looks at'
    save(gallery_figure(trace(model, pseudo_collate(data)), images, titles, title=title), path)


if __name__ == '__main__':
    main(*sys.argv[1:])
