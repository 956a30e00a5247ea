from .classifier import DATClassifier
from .dat import DAT
from .simmim import SimMIMDAT

__all__ = ['DAT', 'DATClassifier', 'SimMIMDAT']
