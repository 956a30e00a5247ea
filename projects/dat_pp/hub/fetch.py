"""Find a saved model on this machine or on the hub, and verify it."""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS, CARD, CONFIG = FILES = 'model.safetensors', 'README.md', 'config.json'
INSTALL = "pip install 'dat_pp[hub]'"


@dataclass(frozen=True)
class SavedModel:
    """A complete folder in the hub format: its weights have the SHA-256 that config.json states.

    Attributes:
        weights: Path of model.safetensors.
        config: Content of config.json.
    """

    weights: Path
    config: dict[str, Any]

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Preprocessing and classes, in the form of ``default_cfg``."""
        cfg = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in self.config.get('pretrained_cfg', {}).items()
        }
        classes = {key: self.config[key] for key in ('label_names',) if key in self.config}
        return cfg | classes


def fetch(
    name: str | os.PathLike[str],
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> SavedModel:
    """Find a saved model on this machine, or download it if ``name`` is an id, and verify it.

    The arguments and errors are those of :meth:`dat_pp.hub.HubModule.from_pretrained`.
    """
    folder = Path(name).expanduser()
    if folder.is_file():
        raise ValueError(f'{name} is a file; expected a folder that save_pretrained wrote')
    if not folder.is_dir():
        folder = _download(os.fspath(name), revision, token, cache_dir, local_files_only)
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise FileNotFoundError(f'no {file} in {folder}: expected what save_pretrained writes')
    try:
        config = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{folder / CONFIG} is damaged: {error}') from error
    own = config.get('dat_pp') if isinstance(config, dict) else None
    if not isinstance(own, dict) or not {'arch', 'arguments', 'dtype', 'sha256'} <= own.keys():
        raise ValueError(
            f"{folder / CONFIG} has no complete entry 'dat_pp', as save_pretrained writes"
        )
    stated, found = own['sha256'], sha256(folder / WEIGHTS)
    if found != stated:
        raise ValueError(
            f'{folder / WEIGHTS} is damaged or of another model: its SHA-256 is {found}, '
            f'{CONFIG} states {stated}'
        )
    return SavedModel(folder / WEIGHTS, config)


def _download(repository: str, *options: Any) -> Path:
    """Download the three files of a repository on the hub, or find them in the cache."""
    if not re.fullmatch(r'\w[\w.-]*/[\w.-]+', repository):
        raise FileNotFoundError(
            f"no such folder: {repository} (nor is it the id of a repository, 'owner/name')"
        )
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise ImportError(
            f'no folder {repository}; loading it from the hub needs huggingface_hub: {INSTALL}'
        ) from error
    names = ('revision', 'token', 'cache_dir', 'local_files_only')
    try:
        return Path(
            snapshot_download(repository, allow_patterns=list(FILES), **dict(zip(names, options)))
        )
    except Exception as error:  # of huggingface_hub or of its HTTP client
        reason = str(error).strip().partition('\n')[0] or type(error).__name__
        raise FileNotFoundError(
            f'no folder {repository}, and it could not be loaded from the hub: {reason}'
        ) from error


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
