"""What ``import dat_pp`` loads, and what works in an environment that has PyTorch only."""

from pathlib import Path

import pytest
from fresh import python

import dat_pp

# Also hides what is installed here: a finder before all others that knows these packages missing.
BLOCK = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {packages}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)

sys.meta_path.insert(0, Missing())
"""
PACKAGES = (
    *('mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg', 'cv2', 'timm', 'yaml', 'matplotlib'),
    *('safetensors', 'huggingface_hub', 'triton', 'torchvision', 'PIL', 'packaging'),
)
WITHOUT = BLOCK.format(packages=PACKAGES)


def run(folder: Path, code: str) -> list[str]:
    """Lines that the code prints in a fresh process."""
    done = python(folder, '-c', code)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    return done.stdout.splitlines()


def test_loads_nothing_but_torch_and_registers_later(tmp_path: Path) -> None:
    """``import dat_pp`` loads PyTorch; mmengine, loaded after it, has the modules."""
    code = (
        'import sys, torch; before = set(sys.modules); import dat_pp\n'
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}\n"
        '              - set(sys.stdlib_module_names) - {"torch"}))\n'
        "print(*{'torch._dynamo', 'torch.utils.flop_counter', 'torch.fx'} & set(sys.modules)\n"
        '      - before)\n'
        'import mmengine.optim\n'
        'from mmengine import registry\n'
        "assert registry.MODELS.get('DAT') is dat_pp.DAT\n"
        "assert registry.MODELS.get('SimMIMDAT') is dat_pp.models.SimMIMDAT\n"
        "for name in 'Float32Head', 'Float32RoIExtractor': assert registry.MODELS.get(name)\n"
        'for group, name in [\n'
        "    (registry.OPTIM_WRAPPERS, 'CPUAmpOptimWrapper'),\n"
        "    (registry.OPTIM_WRAPPER_CONSTRUCTORS, 'BackboneLayerDecayConstructor'),\n"
        "    (registry.PARAM_SCHEDULERS, 'LateCosineAnnealingLR'),\n"
        ']: assert group.get(name) is getattr(dat_pp, name)\n'
    )
    assert run(tmp_path, code) == ['dat_pp', '']


def test_public_names() -> None:
    assert all(getattr(dat_pp, name) is not None for name in dat_pp.__all__)
    assert set(dat_pp.__all__) <= set(dir(dat_pp))
    with pytest.raises(AttributeError, match="module 'dat_pp' has no attribute 'DAR'"):
        dat_pp.DAR  # noqa: B018


PLAIN = """
import pickle
import torch
import dat_pp
from dat_pp import create_model, neighborhood_attention

arch = dict(base='dat-t++', embed_dims=[8, 8, 16, 16], mixers=['ND', 'LS', 'PD', 'XD'],
            num_heads=[1, 1, 2, 2], offset_groups=1)
model = create_model(arch, num_classes=5, drop_path_rate=0.1, with_cp=True)
x = torch.rand(2, 3, 64, 64)
model(x).sum().backward()
torch.save(model.state_dict(), 'weights.pth')
again = create_model(arch, pretrained='weights.pth', num_classes=5).eval()
assert torch.equal(again(x), model.eval()(x))
assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
pyramid = create_model(arch, pretrained='weights.pth', features_only=True, out_indices=(1, 3))
print([tuple(map.shape) for map in pyramid(x)], pyramid.feature_info.channels())
backbone = dat_pp.DAT(arch, init_cfg=dict(type='Pretrained', checkpoint='weights.pth'))
backbone.init_weights()
assert torch.equal(backbone.stem.conv1.weight, model.stem.conv1.weight)
print(neighborhood_attention(*torch.rand(3, 1, 1, 5, 5, 8), torch.rand(1, 5, 5)).shape)
"""


def test_without_other_packages(tmp_path: Path) -> None:
    """Classifier, feature pyramid, operators and files work with PyTorch alone."""
    assert run(tmp_path, WITHOUT + PLAIN) == [
        '[(2, 8, 8, 8), (2, 16, 2, 2)] [8, 16]',
        'torch.Size([1, 1, 5, 5, 8])',
    ]


MISSING = {
    "dat_pp.create_model('dat-t', pretrained='x.safetensors')": (
        "reading x.safetensors needs safetensors: pip install 'dat_pp[hub]'"
    ),
    "dat_pp.create_model('dat-t', pretrained='https://127.0.0.1/x.pth')": (
        "reading https://127.0.0.1/x.pth needs mmengine: pip install 'dat_pp[mmlab]'; or give the "
        'path of a file'
    ),
    "dat_pp.DAT('dat-t', init_cfg=dict(type='Xavier')).init_weights()": (
        "init_cfg type 'Xavier' needs mmengine: pip install 'dat_pp[mmlab]'"
    ),
    'dat_pp.LateCosineAnnealingLR': (
        "dat_pp.LateCosineAnnealingLR needs mmengine: pip install 'dat_pp[mmlab]'"
    ),
}


def test_missing_package(tmp_path: Path) -> None:
    """One line that names the extra."""
    (tmp_path / 'x.safetensors').touch()
    attempts = ''.join(
        f'try: {statement}\nexcept ImportError as error: print(error)\n' for statement in MISSING
    )
    assert run(tmp_path, f'{WITHOUT}\nimport dat_pp\n{attempts}') == list(MISSING.values())
