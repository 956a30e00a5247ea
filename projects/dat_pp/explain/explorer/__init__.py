"""A page for the browser that answers what each query of an image attends to."""

from .page import ExplorerPage
from .predictions import Prediction, Predictions

__all__ = ['ExplorerPage', 'Prediction', 'Predictions']
