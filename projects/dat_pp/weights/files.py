"""Read checkpoint files without running the code that they may name."""

import os
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .mismatch import some

ENTRIES = ('state_dict_ema', 'model_ema', 'state_dict', 'model', 'ema_state_dict')
"""Where a checkpoint file may hold its weights, in order of preference.

timm keeps averaged (EMA) weights beside the raw ones and evaluates the averaged ones. mmengine's
EMAHook swaps them: ``state_dict`` is averaged and ``ema_state_dict`` is raw.
"""


@dataclass(frozen=True)
class Checkpoint:
    """What :func:`read_checkpoint` finds in a file.

    Attributes:
        weights: Tensors by name, without the ``module.`` prefix of parallel models.
        entry: The entry of the file that holds them; None if the file holds nothing else.
        content: The whole file. Classes and functions that it names are replaced by empty dicts. Of
            a ``.safetensors`` file: its tensors.
    """

    weights: dict[str, Tensor]
    entry: str | None
    content: Mapping[str, Any]


def read_checkpoint(path: str | os.PathLike[str], entries: Sequence[str] = ENTRIES) -> Checkpoint:
    """Read the weights of a checkpoint file to the CPU.

    A local file is read without running any code: classes and functions that it names are never
    called. Its tensors may be memory-mapped, so do not write to the file while they are in use.

    Args:
        path: A local ``.safetensors`` or PyTorch file, or a URL that mmengine's
            ``CheckpointLoader`` takes.
        entries: Entries that may hold the weights, in order of preference. A file with none of
            them must hold weights and nothing else.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The package that reads it is not installed; the message names the extra.
        ValueError: It cannot be read, or holds no weights.
    """
    path = os.fspath(path)
    content = _read_url(path) if '://' in path else _read_local(path)
    mapping = content if isinstance(content, Mapping) else {}
    entry = next((e for e in entries if mapping.get(e) and isinstance(mapping[e], Mapping)), None)
    weights = mapping if entry is None else mapping[entry]
    if not weights or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        found = some([str(name) for name in mapping], most=8) or type(content).__name__
        raise ValueError(
            f'{path} holds no weights: expected tensors by name, on their own or under '
            f'{" or ".join(entries)}; found {found}'
        )
    # mmengine's averaged model counts its updates beside the wrapped model.
    wrapped = {name: value for name, value in weights.items() if name != 'steps'}
    if wrapped and all(name.startswith('module.') for name in wrapped):
        weights = {name.removeprefix('module.'): value for name, value in wrapped.items()}
    return Checkpoint(dict(weights), entry, mapping)


def _read_url(url: str) -> Any:
    try:
        from mmengine.runner.checkpoint import CheckpointLoader
    except ModuleNotFoundError as error:
        raise ImportError(
            f"reading {url} needs mmengine: pip install 'dat_pp[mmlab]'; or give the path of a file"
        ) from error
    return CheckpointLoader.load_checkpoint(url, map_location='cpu')


def _read_local(path: str) -> Any:
    if os.path.isdir(path):
        raise ValueError(f'{path} is a folder; expected a checkpoint file')
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no such file: {path}')
    if path.endswith('.safetensors'):
        return _read_safetensors(path)
    names: list[str] = []
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:  # files from before PyTorch 1.6 are not; they must hold nothing but plain data
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins: list[Any] = [(_Value if n.startswith('numpy.') else _Object, n) for n in names]
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter('ignore')
            return torch.load(path, map_location='cpu', weights_only=True, mmap=zipped)
    except PermissionError as error:
        raise ValueError(f'cannot read {path}: {error.strerror}') from error
    except Exception as error:  # a damaged file can raise anything
        reason = 'it is damaged (an interrupted download?) or not a PyTorch checkpoint'
        if names:
            reason += f', or unsafe: it names {some(sorted(names))}'
        raise ValueError(f'cannot read {path}: {reason}') from error


def _read_safetensors(path: str) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        message = f"reading {path} needs safetensors: pip install 'dat_pp[hub]'"
        raise ImportError(message) from error
    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, OSError
        raise ValueError(
            f'cannot read {path}: it is damaged (an interrupted download?) or no safetensors file'
        ) from error


class _Object:
    """Stand-in for a class or function that a file names: calling it returns an empty dict.

    It is an OrderedDict, whose items PyTorch's safe reader sets; those of subclasses it refuses.
    """

    def __new__(cls, *args: Any) -> Any:
        return OrderedDict()


class _Value:
    """Stand-in for values of numpy, whose state is not a dict."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass
