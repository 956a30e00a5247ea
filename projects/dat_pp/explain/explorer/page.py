"""Make the page: one file that holds its scripts, styles, images and data, and loads nothing."""

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..blocks import DeformableBlock, NeighborhoodBlock
from ..tracer import Trace
from .payload import form_of, order, pack
from .predictions import Predictions

LIMIT = 25
"""Size of a page in megabytes (10^6 bytes)."""
LONGEST_SIDE = 1344
"""Images are reduced to this many pixels on the longer side."""
LOSSLESS_SIDE = 256
"""Images up to this side are kept without loss."""
DESCRIPTION = 1000
"""Bytes for what the page says of a block or prediction."""
HARDLY_COMPRESSED = 0.85
"""Blocks are not tried where they would not fit even if they were compressed to this part."""
SCRIPTS = ('data.js', 'draw.js', 'discs.js', 'overview.js', 'app.js', 'events.js')


class ExplorerPage:
    """An explorer of one or more images: hover to see what each query of a model attends to.

    Add images, then write::

        page = ExplorerPage('dat-t++', images=1)
        page.add('photo.jpg', rgb, trace)
        page.write('explorer.html')

    Args:
        model: Name of the model.
        images: How many will be added. Each may take the same part of ``limit``, or what its first
            block needs.
        limit: Largest size of the page in megabytes (10^6 bytes). Blocks and images that do not fit
            are left out, and the page says so.
        note: A remark below the title.
    """

    def __init__(self, model: str, images: int = 1, limit: float = LIMIT, note: str = '') -> None:
        self.model = model
        self.note = note
        self.limit = limit
        self.left = limit * 1e6 - len(self._fill('', '').encode())
        self.share = self.left / max(1, images)
        self.images: list[dict[str, Any]] = []
        self.absent: list[str] = []
        self.data: list[str] = []

    def add(
        self,
        name: str,
        rgb: NDArray,
        trace: Trace,
        image: int = 0,
        predictions: Predictions | None = None,
        query: tuple[float, float] | None = None,
        blocks: Sequence[str] = (),
    ) -> bool:
        """Add an image; return whether it fits.

        Args:
            name: What the image is called.
            rgb: The image before resizing, RGB (H, W, 3) or gray (H, W).
            trace: The trace.
            image: Index of the image in the batch of the trace.
            predictions: What the model predicts for it.
            query: Pixel (y, x) to begin with; default: the center.
            blocks: Names of blocks that are kept first; the last of them is shown first.

        Raises:
            ValueError: ``rgb`` is not of the size that the trace says, or no block has attention.
        """
        height, width = trace.images[image].size
        if rgb.shape[:2] != (height, width):
            shape = ' x '.join(map(str, rgb.shape[:2]))
            raise ValueError(f'the image is {shape} pixels, that of the trace {height} x {width}')
        predictions = predictions or Predictions()
        top, left, bottom, right = trace.images[image].seen
        picture = _data_uri(Image.fromarray(np.asarray(rgb, np.uint8)))
        regions = '' if predictions.regions is None else _regions_uri(predictions.regions)
        kept: list[dict[str, Any]] = []
        packed, omitted = [], []
        used = len(picture) + len(regions) + DESCRIPTION * (len(trace) + len(predictions.items))
        for block in order(list(trace), list(blocks)):
            room = (min(self.share, self.left) if kept else self.left) - used
            form, size = form_of(block)
            size = size * 4 // 3  # in base64
            text = ''
            if size * HARDLY_COMPRESSED < room:
                info, data = pack(block, image)
                text = base64.b64encode(data).decode()
                size = len(text)
            if not text or size > room:
                omitted.append([block.name, block.mixer, f'{size / 1e6:.1f} MB'])
                continue
            used += size
            kept.append(info | dict(form=form))
            packed.append(text)
        if not kept and not omitted:
            raise ValueError('the model has no block with deformable or neighborhood attention')
        if not kept:
            self.absent.append(name)
            return False
        self.left -= used
        names = [block.name for block in trace]
        start = len(self.data)
        places = sorted(range(len(kept)), key=lambda i: names.index(kept[i]['name']))
        self.data += [packed[i] for i in places]
        self.images.append(
            dict(
                name=name,
                src=picture,
                size=[height, width],
                seen=[top, left, bottom, right],
                query=list(query or ((top + bottom) / 2, (left + right) / 2)),
                predictions=[
                    dict(label=p.label, score=round(p.score, 4), box=p.box)
                    for p in predictions.items
                ],
                measure=predictions.measure,
                regions=regions,
                blocks=[kept[i] | dict(data=start + n) for n, i in enumerate(places)],
                windows={
                    block.stage: [block.kernel_size, *block.q.shape[2:4]]
                    for block in trace.neighborhood
                },
                shown=_shown_first(trace, kept, blocks),
                omitted=sorted(omitted, key=lambda x: names.index(x[0])),
                others=[
                    [block.name, block.mixer]
                    for block in trace
                    if not isinstance(block, DeformableBlock | NeighborhoodBlock)
                ],
            )
        )
        return True

    def html(self) -> str:
        """The page.

        Raises:
            ValueError: It has no image.
        """
        if not self.images:
            raise ValueError(f'no image fits in a page of {self.limit:g} MB')
        info = dict(
            model=self.model,
            note=self.note,
            limit=self.limit,
            images=self.images,
            absent=self.absent,
        )
        # Within a script element, '<' could end it.
        text = json.dumps(info, separators=(',', ':')).replace('<', '\\u003c')
        blocks = '\n'.join(
            f'<script type="text/plain" id="data-{i}">{data}</script>'
            for i, data in enumerate(self.data)
        )
        return self._fill(text, blocks)

    def write(self, path: str | Path) -> Path:
        """Write the page, in folders that are made if missing."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html(), encoding='utf-8')
        return path

    def _fill(self, info: str, data: str) -> str:
        folder = files(__package__)
        scripts = '\n'.join(
            f'<script>\n{(folder / name).read_text(encoding="utf-8")}</script>' for name in SCRIPTS
        )
        return Template((folder / 'explorer.html').read_text(encoding='utf-8')).substitute(
            title=escape(f'{self.model}: attention explorer'),
            style=(folder / 'explorer.css').read_text(encoding='utf-8'),
            info=info,
            data=data,
            scripts=scripts,
        )


def _shown_first(trace: Trace, kept: Sequence[dict], blocks: Sequence[str]) -> str:
    names = [info['name'] for info in kept]
    chosen = [name for name in blocks if name in names]
    deformable = [block.name for block in trace.deformable if block.name in names]
    return [*names[:1], *deformable[-1:], *chosen[-1:]][-1]


def _data_uri(picture: Image.Image) -> str:
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    if max(picture.size) <= LOSSLESS_SIDE:
        picture.save(buffer, 'PNG')
        kind = 'png'
    else:
        picture.save(buffer, 'JPEG', quality=88)
        kind = 'jpeg'
    return f'data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}'


def _regions_uri(regions: NDArray[np.uint8]) -> str:
    """Indices of regions as a gray PNG, reduced as the image is."""
    picture = Image.fromarray(regions)
    scale = min(1.0, LONGEST_SIDE / max(picture.size))
    if scale < 1:
        size = [max(1, round(length * scale)) for length in picture.size]
        picture = picture.resize((size[0], size[1]), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, 'PNG', optimize=True)
    return f'data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'
