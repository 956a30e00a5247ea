"""The published models, one row each: what they are trained with, and the results to reproduce."""

from typing import NamedTuple


class Classifier(NamedTuple):
    """A model on ImageNet-1K; learning rates are per 512 images."""

    config: str
    arch: str
    parameters: int
    drop_path: float
    gpus: int
    images: int
    top1: float | None = None
    top5: float | None = None
    size: int = 224
    resize: int = 256
    iterations: int = 312
    epochs: int = 300
    warmup: int = 20
    lr: float = 5e-4
    min_lr: float = 5e-6
    weight_decay: float = 0.05
    clip: float = 5.0

    @property
    def results(self) -> dict[str, float | None]:
        return {'Top 1 Accuracy': self.top1, 'Top 5 Accuracy': self.top5}


class Detector(NamedTuple):
    """A model on COCO."""

    method: str
    size: str
    epochs: int
    lr: float
    drop_path: float
    box_ap: float
    mask_ap: float | None = None
    gpus: int = 32
    images: int = 2
    amp: bool = True

    @property
    def config(self) -> str:
        schedule = f'{self.gpus}xb{self.images}-{"amp-" if self.amp else ""}ms-crop'
        return f'{self.method}_dat-pp-{self.size[0]}_fpn_{schedule}-{self.epochs // 12}x_coco'

    @property
    def results(self) -> dict[str, float | None]:
        return {'box AP': self.box_ap, 'mask AP': self.mask_ap}


class Segmentor(NamedTuple):
    """A model on ADE20K."""

    head: str
    size: str
    drop_path: float
    miou: float
    multi_scale: float
    amp: bool = False

    @property
    def config(self) -> str:
        schedule = '8xb4' if self.head == 'fpn' else '8xb2'
        length = ('amp-' if self.amp else '') + ('40k' if self.head == 'fpn' else '160k')
        return f'dat-pp-{self.size}_{self.head}_{schedule}-{length}_ade20k-512x512'

    @property
    def results(self) -> dict[str, float | None]:
        return {'mIoU': self.miou, 'mIoU(ms+flip)': self.multi_scale}


FINE_TUNED = dict(size=384, epochs=30, iterations=834, warmup=0, weight_decay=1e-8)
CLASSIFIERS = [
    Classifier('dat-pp-tiny_32xb128_in1k', 'dat-t++', 23_962_876, 0.2, 32, 128, 83.864, 96.734),
    Classifier('dat-pp-small_32xb128_in1k', 'dat-s++', 53_127_366, 0.4, 32, 128, 84.6),
    Classifier('dat-pp-base_64xb64_in1k', 'dat-b++', 93_690_640, 0.7, 64, 64, 84.9),
    Classifier(
        'dat-pp-base_64xb24_in1k-384px', 'dat-b++', 93_690_640, 0.6, 64, 24, 85.9,
        resize=384, lr=2e-5, min_lr=2e-7, **FINE_TUNED,
    ),
    Classifier('dat-tiny_32xb128_in1k', 'dat-t', 28_319_138, 0.2, 32, 128, 82.034, 95.850),
    Classifier('dat-small_32xb128_in1k', 'dat-s', 49_700_402, 0.3, 32, 128, 83.686, 96.392),
    Classifier(
        'dat-base_32xb128_in1k', 'dat-b', 87_881_632, 0.5, 32, 128, 84.028, 96.686,
        warmup=50, lr=4e-4, clip=1.0,
    ),
    Classifier(
        'dat-base_64xb24_in1k-384px', 'dat-b', 88_178_272, 0.5, 64, 24, 84.754, 96.982,
        resize=438, lr=2e-6, min_lr=1e-7, **FINE_TUNED,
    ),
]  # fmt: skip
DETECTORS = [
    Detector('retinanet', 'tiny', 12, 2e-4, 0.0, 46.8),
    Detector('retinanet', 'tiny', 36, 2e-4, 0.2, 49.2),
    Detector('retinanet', 'small', 12, 2e-4, 0.1, 48.3),
    Detector('retinanet', 'small', 36, 2e-4, 0.5, 50.2),
    Detector('mask-rcnn', 'tiny', 12, 4e-4, 0.0, 48.7, 43.7),
    Detector('mask-rcnn', 'tiny', 36, 4e-4, 0.3, 50.5, 45.1),
    Detector('mask-rcnn', 'small', 12, 4e-4, 0.1, 49.8, 44.5),
    Detector('mask-rcnn', 'small', 36, 4e-4, 0.5, 51.2, 45.7),
    Detector('cascade-mask-rcnn', 'tiny', 12, 4e-4, 0.0, 52.2, 45.0),
    Detector('cascade-mask-rcnn', 'tiny', 36, 4e-4, 0.1, 53.0, 46.0),
    Detector('cascade-mask-rcnn', 'small', 36, 4e-4, 0.5, 54.2, 46.9, amp=False),
    Detector('cascade-mask-rcnn', 'base', 36, 4e-4, 0.8, 54.5, 47.0, 64, 1, amp=False),
]
SEGMENTORS = [
    Segmentor('fpn', 'tiny', 0.4, 48.4, 48.8),
    Segmentor('fpn', 'small', 0.4, 49.9, 50.7),
    Segmentor('fpn', 'base', 0.7, 50.4, 51.1),
    Segmentor('upernet', 'tiny', 0.3, 49.4, 50.3, amp=True),
    Segmentor('upernet', 'small', 0.5, 50.5, 51.2, amp=True),
    Segmentor('upernet', 'base', 0.7, 51.0, 51.5),
]
PUBLISHED = {'imagenet': CLASSIFIERS, 'coco': DETECTORS, 'ade20k': SEGMENTORS}
WIDTHS = {'tiny': 64, 'small': 96, 'base': 128}
"""Channels of the first stage of DAT++."""
