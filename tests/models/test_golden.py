"""The published numbers, through the public weight conversion, on every backend.

In float64, which the Triton kernels do not have: those have one case in float32.
"""

import golden
import pytest
import torch
from mmpretrain.registry import MODELS
from torch import nn

from dat_pp import convert_published
from dat_pp.models.arch import ARCH_SETTINGS


class _DenseModel(nn.Module):
    """A backbone under its name in detectors and segmentors."""

    def __init__(self, backbone: dict) -> None:
        super().__init__()
        self.backbone = MODELS.build(backbone)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.backbone(x)


def _build(case: str) -> nn.Module:
    arch = golden.arch_of(case)
    if 'dense' in golden.CASES[case]['code']:
        return _DenseModel(dict(type='DAT', arch=arch)).double()
    channels = golden.CASES[case]['arguments']['dims'][-1]
    model = dict(
        type='ImageClassifier',
        backbone=dict(type='DAT', arch=arch, out_indices=(3,)),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=channels),
    )
    return MODELS.build(model).double()


@pytest.mark.parametrize('backend', ['reference', 'blocked'])
@pytest.mark.parametrize('case', golden.CASES)
def test_golden(case: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('DAT_PP_BACKEND', backend)
    expected = golden.CASES[case]
    model = _build(case).eval()
    assert sum(p.numel() for p in model.parameters()) == expected['params']
    state, names = golden.published_state(case, model)
    model.load_state_dict(convert_published(state))

    with torch.set_grad_enabled('loss' in expected):
        outs = model(torch.from_numpy(golden.values.model_input(case, expected['input_shape'])))
    outs = [outs] if isinstance(outs, torch.Tensor) else outs
    for out, want in zip(outs, golden.outputs(case), strict=True):
        assert out.shape == want.shape
        assert (out - want).abs().max() <= 1e-8 * want.abs().max()

    if 'loss' in expected:
        loss = sum(
            (out * golden.normal(f'cotangent/{case}/{i}', out.shape)).sum()
            for i, out in enumerate(outs)
        )
        assert loss.item() == pytest.approx(expected['loss'], rel=1e-7)
        loss.backward()
        assert set(names.values()) == set(expected['grad'])
        for name, parameter in model.named_parameters():
            norm, dot = expected['grad'][names[name]]
            grad = parameter.grad.view(state[names[name]].shape)
            probe = golden.normal(f'probe/{names[name]}', grad.shape)
            # The bias of a key shifts all logits of a query alike: its gradient is rounding error.
            tolerance = 1e-7 * norm + 1e-12
            assert grad.norm().item() == pytest.approx(norm, abs=tolerance), name
            assert (grad * probe).sum().item() == pytest.approx(dot, abs=tolerance), name


def _float32_output(case: str, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """First output of a case in float32, and the golden one."""
    model = _build(case).eval()
    model.load_state_dict(convert_published(golden.published_state(case, model)[0]))
    x = golden.values.model_input(case, golden.CASES[case]['input_shape'])
    with torch.no_grad():
        outs = model.to(device, torch.float32)(torch.from_numpy(x).to(device, torch.float32))
    return (outs if isinstance(outs, torch.Tensor) else outs[0]).cpu(), golden.outputs(case)[0]


@pytest.mark.slow
def test_golden_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('DAT_PP_BACKEND', 'triton')
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    out, want = _float32_output('pp_micro_small_input', device)
    assert (out - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize('case', golden.CASES)
def test_golden_native(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('DAT_PP_BACKEND', 'native')
    out, want = _float32_output(case, 'cpu')
    assert (out - want).abs().max() <= 1e-5 * want.abs().max()


PARAMETERS = {
    'dat-t': 28_319_138,
    'dat-s': 49_700_402,
    'dat-b': 87_881_632,
    'dat-t++': 23_962_876,
    'dat-s++': 53_127_366,
    'dat-b++': 93_690_640,
    'dat-t++ plain': 22_772_796,
    'dat-b 384': 88_178_272,
}
DERIVED = {
    'dat-t++ plain': dict(base='dat-t++', lpu=False, conv_ffn=False, overlapped=False),
    'dat-b 384': dict(base='dat-b', window_size=12, native_resolution=384),
}


def _classifier(arch: str) -> nn.Module:
    """A 1000-class model of a published variant."""
    backbone = MODELS.build(dict(type='DAT', arch=DERIVED.get(arch, arch), out_indices=(3,)))
    head = nn.Linear(backbone.arch.embed_dims[-1], 1000)
    return nn.Sequential(backbone, _Pool(), head)


class _Pool(nn.Module):
    def forward(self, outs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return outs[-1].mean((2, 3))


@pytest.mark.parametrize('arch', PARAMETERS)
def test_parameter_count(arch: str) -> None:
    assert PARAMETERS.keys() == ARCH_SETTINGS.keys() | DERIVED.keys()
    with torch.device('meta'):
        model = _classifier(arch)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[arch]
