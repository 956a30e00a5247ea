"""Save models to folders in the format of Hugging Face's hub; load them from a folder or an id.

A folder holds ``model.safetensors``, ``config.json`` (architecture, classes, preprocessing, SHA-256
of the weights) and ``README.md``, the model card. timm loads such a folder too, as
``local-dir:FOLDER`` or ``hf-hub:ID``. Nothing is downloaded unless the id of a repository is given.
"""

from .fetch import SavedModel, fetch, sha256
from .module import HubModule

__all__ = ['HubModule', 'SavedModel', 'fetch', 'sha256']
