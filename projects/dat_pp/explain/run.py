"""Show what a model's deformable attention looks at.

    python tools/explain.py IMAGE... --model NAME|CONFIG --weights FILE --out-dir DIR

DIR/ gets a page for the browser, and DIR/IMAGE/ three figures and a file of numbers:

    explorer.html  what every query attends to, in every block and head, of all images

    points    reference points and where the samples move, by offset group; size: attention received
    queries   what some queries (stars) attend to (circles, sized and colored by weight)
    heat      attention received over the image
    trace.npz positions, attention and received attention of every block
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ..engine.errors import UserError, user_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'images', nargs='+', metavar='IMAGE', help='image file, or folder of images'
    )
    parser.add_argument(
        '--model', required=True, metavar='NAME|CONFIG',
        help='config file, a config of this package by name, or a model: dat-t++',
    )  # fmt: skip
    parser.add_argument('--weights', metavar='FILE', help='checkpoint; default: random weights')
    parser.add_argument(
        '--query', nargs='+', metavar='Y,X',
        help='pixels of the image; default: the best detections, or where most attention goes',
    )  # fmt: skip
    parser.add_argument(
        '--blocks', nargs='+', metavar='STAGE.INDEX',
        help='deformable blocks, from 0.0; default: the last of each of the last two stages',
    )  # fmt: skip
    parser.add_argument('--by-head', action='store_true', help='a panel per head for the queries')
    parser.add_argument('--out-dir', required=True, metavar='DIR')
    parser.add_argument('--format', choices=['png', 'pdf', 'svg'], default='png')
    parser.add_argument(
        '--page-mb', type=float, default=25, metavar='MB',
        help='largest size of explorer.html, 25 by default; the page says what it leaves out',
    )  # fmt: skip
    parser.add_argument('--overwrite', action='store_true', help='replace files of an earlier run')
    return parser.parse_args(argv)


def parse_queries(texts: Sequence[str] | None) -> list[tuple[float, float]] | None:
    """Pixels (y, x) from ``Y,X``.

    Raises:
        UserError: One is written differently.
    """
    if texts is None:
        return None
    number = r'(\d+(?:\.\d+)?)'
    matches = [re.fullmatch(f'{number},{number}', text) for text in texts]
    for text, match in zip(texts, matches):
        if not match:
            raise UserError(f"--query: expected Y,X in pixels of the image, got '{text}'")
    return [(float(match[1]), float(match[2])) for match in matches if match]


def folders_of(paths: Sequence[Path], out_dir: Path) -> list[Path]:
    """A folder per image, called as its file without suffix, and numbered where that is taken."""
    folders: list[Path] = []
    for path in paths:
        name, number = path.stem, 2
        while out_dir / name in folders:
            name, number = f'{path.stem}-{number}', number + 1
        folders.append(out_dir / name)
    return folders


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with user_errors('figures', "; pip install 'dat_pp[explain]'"):
        from .explorer import ExplorerPage
        from .figures import deformable_blocks, strongest
        from .output import draw, file_names
        from .sources import find_images, image_size, load_source, read_rgb
    queries = parse_queries(args.query)
    paths = find_images(args.images)
    folders = folders_of(paths, Path(args.out_dir))
    files = [folder / name for folder in folders for name in file_names(args.format)]
    for file in [*files, Path(args.out_dir) / 'explorer.html']:
        if file.exists() and not args.overwrite:
            raise UserError(f'--out-dir: {file} exists; --overwrite replaces it')
    for path in paths:
        height, width = image_size(path)
        for y, x in queries or ():
            if y > height - 1 or x > width - 1:
                raise UserError(
                    f'--query: ({y:g}, {x:g}) is outside of {path}, {height} x {width} pixels'
                )
    source = load_source(args.model, args.weights)
    if not source.trained:
        print('note: random weights show nothing a model learned; give --weights', file=sys.stderr)
    note = '' if source.trained else 'random weights, which show nothing that a model learned'
    page = ExplorerPage(source.name, len(paths), args.page_mb, note)
    for path, folder in zip(paths, folders):
        rgb = read_rgb(path)
        with user_errors(f'image {path}'):
            trace = source.trace(path, rgb)
            predictions = source.predictions(path)
            chosen = deformable_blocks(trace, args.blocks)
            points = queries or predictions.centers[:3] or strongest(trace, chosen)
            written = draw(
                trace,
                rgb,
                folder,
                queries=points,
                blocks=args.blocks,
                by_head=args.by_head,
                format=args.format,
                title=f'{path.name}, {source.name}' + ' (random weights)' * (not source.trained),
            )
            page.add(
                path.name,
                rgb,
                trace,
                predictions=predictions,
                query=points[0],
                blocks=args.blocks or (),
            )
        print(f'{folder}: {", ".join(file.name for file in written)}')
    with user_errors('--page-mb'):
        print(page.write(Path(args.out_dir) / 'explorer.html'))
