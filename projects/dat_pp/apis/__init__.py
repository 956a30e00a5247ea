"""A trained model on images: what ``tools/predict.py`` does, for programs.

It needs mmengine and the OpenMMLab library of the model's config.
"""

from .predict import Results, predict
from .predictor import Prediction, Predictor, load_predictor

__all__ = ['Prediction', 'Predictor', 'Results', 'load_predictor', 'predict']
