"""Predict for images and videos with a trained classifier, detector or segmentor.

    python tools/predict.py IMAGE... --model NAME|CONFIG --weights FILE --out-dir DIR

DIR gets, by the name of each image or video:

    vis/NAME.png     the image with its prediction; NAME.mp4 of a video
    preds/NAME.json  class and scores; boxes, COCO RLE masks; or the classes of a label map
    preds/NAME.png   label map of a segmentor
    explain/NAME/    with --explain, the figures of tools/explain.py

Frames of a video are numbered: preds/NAME/000000.json. A file that cannot be read is named, and
the exit code is 1.
"""

import argparse
from collections.abc import Sequence

from .predict import predict


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'images', nargs='+', metavar='IMAGE',
        help='image file, video, folder of images, or glob pattern',
    )  # fmt: skip
    parser.add_argument(
        '--model', required=True, metavar='NAME|CONFIG',
        help='config file, a config of this package by name, or a classifier: dat-t++',
    )  # fmt: skip
    parser.add_argument(
        '--weights', required=True, metavar='FILE', help='checkpoint; published files as they are'
    )
    parser.add_argument('--out-dir', required=True, metavar='DIR')
    parser.add_argument(
        '--score-thr', type=float, metavar='SCORE',
        help='leave out detections with lower scores, in drawings and JSON; default: 0.3',
    )  # fmt: skip
    parser.add_argument('--batch-size', type=int, default=1, metavar='N')
    parser.add_argument(
        '--device', help='for example cpu or cuda:1; default: a GPU if there is one'
    )
    parser.add_argument(
        '--explain', action='store_true', help='also draw what deformable attention looks at'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace files of an earlier run')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = vars(parse_args(argv))
    out_dir = args['out_dir']
    results = predict(**args, progress=True)
    print(
        f'{out_dir}: predictions for {len(results.predictions)} images'
        if results.predictions
        else f'{out_dir}: nothing written'
    )
    if results.failed:
        print(f'not read: {", ".join(results.failed)}')
    return 1 if results.failed else 0
