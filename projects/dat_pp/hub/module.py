"""The models' base class, with ``save_pretrained`` and ``from_pretrained``."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from ..weights import load_pretrained
from .fetch import fetch

T = TypeVar('T', bound='HubModule')


class HubModule(nn.Module):
    """A model that can be saved and loaded in the hub format."""

    hub_arguments: ClassVar[dict[str, str]] = {}
    """What config.json keeps of the constructor's arguments, beside ``arch``: those that determine
    the names and shapes of the weights, each with the attribute that holds its value."""

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        label_names: Sequence[str] | None = None,
        metrics: Mapping[str, Any] | None = None,
        license: str | None = None,
        source: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Save weights, config and model card to a folder.

        A new folder appears whole or not at all. In an existing one the three files are replaced
        one by one, config.json last, so that an interrupted replacement does not load.

        Args:
            folder: The folder to write. It must be new or empty, unless ``overwrite`` is given.
            label_names: Name of each class; default: those that the model was loaded with.
            metrics: Results measured with these weights, for the model card, such as
                ``{'ImageNet-1K top-1': 83.9}``.
            license: License of the weights as an identifier of the hub, such as ``'apache-2.0'``.
            source: Where the weights come from, a sentence for the model card.
            overwrite: Replace the three files in an existing folder. Others in it are kept.

        Raises:
            FileExistsError: The folder exists and is not empty.
            ImportError: safetensors or numpy is missing.
            ValueError: ``label_names`` are not one name for each class.
        """
        from .saving import save  # imports the models, which import this module

        save(self, folder, label_names, metrics, license, source, overwrite)

    @classmethod
    def from_pretrained(
        cls: type[T],
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> T:
        """Load a model that :meth:`save_pretrained` wrote, after checking the weights' SHA-256.

        A backbone also loads the folder of a classifier, without its head.

        Args:
            name: A local folder, or the id of a repository on the hub, ``'owner/name'``; a folder
                of that name is preferred.
            revision: Branch, tag or commit of the repository.
            token: Access token of the hub, for a private repository.
            cache_dir: Where files of the hub are kept; default: huggingface_hub's cache.
            local_files_only: Take the repository from that cache, without network.
            **kwargs: Further arguments of the constructor, such as ``drop_path_rate``.

        Returns:
            The model in evaluation mode, with the data type of the saved weights.

        Raises:
            FileNotFoundError: There is no such folder or repository, or a file is missing in it.
            ImportError: safetensors is missing, or for an id huggingface_hub.
            ValueError: A file is damaged, or the weights do not fit the arguments; the message
                names the variant or the number of classes of the weights.
        """
        saved = fetch(name, revision, token, cache_dir, local_files_only)
        own = saved.config['dat_pp']
        arguments = {k: v for k, v in own['arguments'].items() if k in cls.hub_arguments}
        model: Any = cls(**{'arch': own['arch'], **arguments, **kwargs})
        model.to(getattr(torch, own['dtype']))
        load_pretrained(model, str(saved.weights))
        if hasattr(model, 'pretrained_cfg'):
            model.pretrained_cfg = saved.pretrained_cfg
        return model.eval()
