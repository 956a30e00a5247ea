"""Predict for images and videos, and write what was predicted."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..engine.errors import UserError, message_of, user_errors
from .inputs import Input, find_inputs
from .output import Output
from .predictor import SCORE_THR, Detector, Picture, Prediction, Predictor, load_predictor

MAX_QUERIES = 3
"""Detections whose attention is drawn."""


@dataclass
class Results:
    """What :func:`predict` found.

    Attributes:
        predictions: A dict per image or frame, in order, as in the JSON files; ``image`` is its
            path. Without an output folder, a segmentor's have ``label_map``, (H, W) of classes.
        failed: Files that could not be read, and why.
    """

    predictions: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class _Image(NamedTuple):
    source: Input
    frame: int | None
    pixels: Picture

    @property
    def name(self) -> str:
        name = self.source.name
        return name if self.frame is None else f'{name}/{self.frame:06}'


def predict(
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    model: str | os.PathLike[str] | Predictor,
    weights: str | os.PathLike[str] | None = None,
    out_dir: str | os.PathLike[str] | None = None,
    *,
    score_thr: float | None = None,
    batch_size: int = 1,
    device: str | None = None,
    explain: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Results:
    """Predict classes, boxes, masks or label maps for images and videos.

    A file that cannot be read is skipped, and named in the results.

    Args:
        images: Image files, videos, folders of images, and glob patterns.
        model: A config file, a config of this package by name, or a published classifier; or what
            :func:`load_predictor` returned.
        weights: A checkpoint file of the whole model; published files are taken as they are.
        out_dir: Folder for drawings (``vis``) and predictions (``preds``). Default: write nothing.
        score_thr: Detections with lower scores are left out. Default: 0.3.
        batch_size: Images per batch; those of other sizes are in batches of their own.
        device: For example ``'cpu'`` or ``'cuda:1'``. Default: the accelerator, if there is one.
        explain: Also draw what deformable attention looks at, under ``out_dir/explain``.
        overwrite: Replace files of an earlier run.
        progress: Show a progress bar and files that cannot be read on stderr.

    Raises:
        UserError: There is no such image or model, the weights do not fit, or files exist.
    """
    if batch_size < 1:
        raise UserError(f'--batch-size: expected at least 1, got {batch_size}')
    if score_thr is not None and not 0 <= score_thr <= 1:
        raise UserError(f'--score-thr: expected 0 to 1, got {score_thr:g}')
    if explain and out_dir is None:
        raise UserError('--explain: needs an output folder for its figures')
    names = [images] if isinstance(images, str | os.PathLike) else images
    inputs = find_inputs([os.fspath(name) for name in names])
    if isinstance(model, Predictor):
        predictor = model
    elif weights is None:
        raise UserError('--weights: needs a checkpoint file')
    else:
        if out_dir is not None:  # loading a model takes seconds
            Output.check_folder(out_dir)
        predictor = load_predictor(model, weights, device)
    if isinstance(predictor, Detector):
        predictor.score_thr = SCORE_THR if score_thr is None else score_thr
    elif score_thr is not None:
        raise UserError(f'--score-thr: only for detectors; {predictor.name} is none')
    if explain:
        _check_explainable(predictor)
    output = None if out_dir is None else Output(out_dir, predictor, explain)
    if output:
        output.check(inputs, overwrite)
    results = Results()
    console = Console(stderr=True)
    columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn()
    with (
        output or contextlib.nullcontext(),
        Progress(
            *columns,
            TimeRemainingColumn(),
            console=console,
            disable=not (progress and console.is_terminal),
        ) as bar,
    ):
        task = bar.add_task('Predicting', total=sum(each.count() for each in inputs))

        def failed(source: Input, reason: str) -> None:
            results.failed[str(source.path)] = reason
            bar.advance(task)
            if progress:
                line = f'error: image: cannot read {source.path}: {reason}'
                console.print(line, markup=False, highlight=False, soft_wrap=True)

        for batch in _batches(_read(inputs, failed), batch_size):
            results.predictions += _run(predictor, batch, output)
            bar.advance(task, len(batch))
    return results


def _read(inputs: Sequence[Input], failed: Any) -> Iterator[_Image]:
    for source in inputs:
        try:
            for index, pixels in enumerate(source.read()):
                yield _Image(source, index if source.is_video else None, pixels)
        except ValueError as error:
            failed(source, message_of(error))


def _batches(images: Iterator[_Image], size: int) -> Iterator[list[_Image]]:
    batch = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _run(predictor: Predictor, images: list[_Image], output: Output | None) -> list[dict]:
    """Predict for a batch and write it."""
    found: list[dict] = [{} for _ in images]
    for indices, data in predictor.batches([image.pixels for image in images]):
        predictions = predictor.predict(data)
        for index, prediction in zip(indices, predictions):
            image, height_width = images[index], images[index].pixels.shape[:2]
            result: dict[str, Any] = dict(image=str(image.source.path), size=list(height_width))
            if image.frame is not None:
                result['frame'] = image.frame
            result |= prediction.result
            label_map = prediction.label_map
            if label_map is not None:
                result['label_map'] = f'{Path(image.name).name}.png' if output else label_map
            if output:
                picture = predictor.draw(image.pixels, prediction)
                output.write(image.source, image.name, picture, result, label_map)
            found[index] = result
        if output and output.explain:
            _explain(predictor, data, [images[i] for i in indices], predictions, output)
    return found


def _explain(
    predictor: Predictor,
    data: dict[str, list],
    images: Sequence[_Image],
    predictions: Sequence[Prediction],
    output: Output,
) -> None:
    """Draw what deformable attention looks at in the images of a batch."""
    from ..explain import draw, trace

    found = trace(predictor.model, data)
    for index, (image, prediction) in enumerate(zip(images, predictions)):
        height, width = image.pixels.shape[:2]
        centers = [
            (min(y, height - 1), min(x, width - 1)) for y, x in predictor.centers(prediction)
        ]
        with user_errors(f'image {image.source.path}'):
            draw(
                found,
                image.pixels,
                output.folder / 'explain' / image.name,
                index,
                queries=centers[:MAX_QUERIES] or None,
                title=f'{image.source.path.name}, {predictor.name}',
            )


def _check_explainable(predictor: Predictor) -> None:
    with user_errors('--explain', "; pip install 'dat_pp[explain]'"):
        from ..explain import draw  # noqa: F401
    with user_errors('--explain'):
        from ..explain import find_backbone

        if not any('D' in stage for stage in find_backbone(predictor.model).arch.mixers):
            raise ValueError(f'{predictor.name} has no deformable attention')
