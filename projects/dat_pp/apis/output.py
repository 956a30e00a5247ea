"""Write predictions: drawings under ``vis``, JSON and label maps under ``preds``."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..engine.errors import RunError, UserError, message_of
from ..engine.preflight import check_writable
from .inputs import Input
from .predictor import Predictor


class Output:
    """The files of a run. Use it as a context: videos are complete at its end.

    Args:
        folder: Output folder, made when the first file is written.
        predictor: What predicts.
        explain: Whether figures of attention are written too.
    """

    def __init__(self, folder: str | os.PathLike[str], predictor: Predictor, explain: bool) -> None:
        self.folder = Path(folder)
        self.predictor = predictor
        self.explain = explain
        self.videos: dict[str, cv2.VideoWriter] = {}

    def __enter__(self) -> 'Output':
        return self

    def __exit__(self, *_: Any) -> None:
        for video in self.videos.values():
            video.release()

    @staticmethod
    def check_folder(folder: str | os.PathLike[str]) -> None:
        """Check that the folders of a run can be made and written to.

        Raises:
            UserError: One cannot.
        """
        for part in ('vis', 'preds', 'explain'):
            check_writable(str(Path(folder) / part / 'file'), '--out-dir')

    def check(self, inputs: Sequence[Input], overwrite: bool) -> None:
        """Check that files can be written, and that none is replaced unless ``overwrite``.

        Raises:
            UserError: One cannot, or exists.
        """
        self.check_folder(self.folder)
        for path in (path for each in inputs for path in self._paths(each)):
            if path.exists() and not overwrite:
                raise UserError(f'--out-dir: {path} exists; --overwrite replaces it')

    def _paths(self, source: Input) -> list[Path]:
        """What is written for an input; a folder where there is a file per frame."""
        name, preds = source.name, self.folder / 'preds'
        paths = [self.folder / 'vis' / f'{name}.{"mp4" if source.is_video else "png"}']
        paths.append(preds / name if source.is_video else preds / f'{name}.json')
        if self.predictor.task == 'segmentation' and not source.is_video:
            paths.append(preds / f'{name}.png')
        return [*paths, self.folder / 'explain' / name] if self.explain else paths

    def write(
        self, source: Input, name: str, picture: NDArray, result: Any, label_map: NDArray | None
    ) -> None:
        """Write the drawing, JSON and label map of an image, or of a frame.

        Raises:
            RunError: A file cannot be written.
        """
        preds = self.folder / 'preds' / f'{name}.json'
        try:
            preds.parent.mkdir(parents=True, exist_ok=True)
            if label_map is not None:
                Image.fromarray(label_map).save(preds.with_suffix('.png'))
            preds.write_text(json.dumps(result), encoding='utf-8')
            vis = self.folder / 'vis'
            vis.mkdir(parents=True, exist_ok=True)
            if source.is_video:
                self._add_frame(source, picture)
            else:
                Image.fromarray(picture).save(vis / f'{name}.png')
        except OSError as error:
            path = error.filename or preds
            raise RunError(f'cannot write {path}: {error.strerror or message_of(error)}') from error

    def _add_frame(self, source: Input, picture: NDArray) -> None:
        height, width = picture.shape[:2]
        writer = self.videos.get(source.name)
        if writer is None:
            path = self.folder / 'vis' / f'{source.name}.mp4'
            fps = cv2.VideoCapture(str(source.path)).get(cv2.CAP_PROP_FPS) or 25
            codec = cv2.VideoWriter.fourcc(*'mp4v')
            writer = cv2.VideoWriter(str(path), codec, fps, (width, height))
            if not writer.isOpened():
                raise RunError(f'cannot write {path}: OpenCV has no encoder for mp4v')
            self.videos[source.name] = writer
        writer.write(np.ascontiguousarray(picture[..., ::-1]))
