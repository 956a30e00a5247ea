"""Deterministic parameter and input values behind the golden numbers.

Every parameter of a model is a function of its *published* name and its shape, so the golden
files need to hold outputs only. Values are float64.
"""

import zlib

import numpy as np


def standard_normal(tag: str, shape) -> np.ndarray:
    """Standard normal values drawn from a generator seeded with the CRC-32 of `tag`."""
    return np.random.default_rng(zlib.crc32(tag.encode())).standard_normal(tuple(shape))


def parameter(name: str, shape) -> np.ndarray:
    """Value of the parameter that the published code calls `name`."""
    w = standard_normal(name, shape)
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    if name.endswith(('rpe_table', '.rpb', 'relative_position_bias_table')):
        return 0.5 * w
    if len(shape) == 1:
        norm = any(s in name for s in ('norm', 'conv_offset.1', 'patch_proj', 'down_projs', 'ln_'))
        if name.endswith('weight'):
            return 1 + 0.1 * w if norm else 0.5 + 0.1 * w
        return 0.1 * w
    if 'conv_offset.3' in name:
        return 0.3 * w / np.sqrt(fan_in)
    return w / np.sqrt(fan_in)


def model_input(case: str, shape) -> np.ndarray:
    """Input images of a golden case."""
    return standard_normal(f'input/{case}', shape)
