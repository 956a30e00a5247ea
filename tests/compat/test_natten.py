"""The stand-in for NATTEN: its parameters, its numbers, and code that imports natten."""

import importlib
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from dat_pp.compat import natten
from dat_pp.models.mixers.neighborhood import NeighborhoodAttention

DIM, HEADS, KERNEL = 12, 3, 3


def nearest(query: int, length: int, kernel: int, dilation: int) -> list[int]:
    """The K pixels of the query's residue class that are nearest to it, in order."""
    residue_class = [key for key in range(length) if key % dilation == query % dilation]
    return sorted(sorted(residue_class, key=lambda key: abs(key - query))[:kernel])


def brute_force(module: natten.NeighborhoodAttention2D, x: Tensor, dilation: int) -> Tensor:
    """What NATTEN computes, one query after the other; ``x`` is at least as large as a window."""
    weights = dict(module.named_parameters())
    size = x.shape[-1] // HEADS
    qkv = nn.functional.linear(x, weights['qkv.weight'], weights.get('qkv.bias'))
    q, k, v = qkv.unflatten(-1, (3, HEADS, size)).unbind(3)
    out = torch.zeros_like(q)
    for y, x in torch.cartesian_prod(*map(torch.arange, q.shape[1:3])).tolist():
        logits, values = [], []
        for key_y in nearest(y, q.shape[1], KERNEL, dilation):
            for key_x in nearest(x, q.shape[2], KERNEL, dilation):
                logits.append(module.scale * (q[:, y, x] * k[:, key_y, key_x]).sum(-1))
                if 'rpb' in weights:
                    dy, dx = (key_y - y) // dilation, (key_x - x) // dilation
                    logits[-1] = logits[-1] + weights['rpb'][:, dy + KERNEL - 1, dx + KERNEL - 1]
                values.append(v[:, key_y, key_x])
        attn = torch.stack(logits).softmax(0)
        out[:, y, x] = (attn[..., None] * torch.stack(values)).sum(0)
    return nn.functional.linear(out.flatten(3), weights['proj.weight'], weights['proj.bias'])


@pytest.mark.parametrize(
    ('size', 'arguments'),
    [
        ((4, 5), {}),
        ((7, 6), dict(dilation=2)),
        ((4, 5), dict(bias=False)),
        ((4, 5), dict(qkv_bias=False, qk_scale=0.7)),
    ],
)
def test_numbers(size: tuple[int, int], arguments: dict) -> None:
    """Output and the gradients of all parameters."""
    torch.manual_seed(0)
    module = natten.NeighborhoodAttention2D(DIM, HEADS, KERNEL, **arguments).double()
    if module.rpb is not None:
        nn.init.normal_(module.rpb)
    x = torch.randn(2, *size, DIM, dtype=torch.float64)
    outs = module(x), brute_force(module, x, arguments.get('dilation', 1))
    grads = [torch.autograd.grad(out.square().sum(), list(module.parameters())) for out in outs]
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(*grads)


def test_parameters() -> None:
    module = natten.NeighborhoodAttention2D(DIM, HEADS, KERNEL)
    assert {name: tuple(x.shape) for name, x in module.state_dict().items()} == {
        'qkv.weight': (36, 12),
        'qkv.bias': (36,),
        'rpb': (3, 5, 5),
        'proj.weight': (12, 12),
        'proj.bias': (12,),
    }
    assert 0 < module.rpb.std() < 0.04
    plain = natten.NeighborhoodAttention2D(DIM, HEADS, KERNEL, rel_pos_bias=False, qkv_bias=False)
    assert set(plain.state_dict()) == {'qkv.weight', 'proj.weight', 'proj.bias'}


@pytest.mark.parametrize('size', [(5, 6), (2, 4), (1, 1)])
def test_like_the_mixer(size: tuple[int, int]) -> None:
    """As DAT++'s mixer, which the published numbers check; small inputs are padded."""
    torch.manual_seed(0)
    mixer = NeighborhoodAttention(DIM, HEADS, KERNEL).double()
    nn.init.normal_(mixer.rpb)
    module = natten.NeighborhoodAttention2D(DIM, HEADS, KERNEL).double()
    module.load_state_dict(mixer.state_dict())
    x = torch.randn(2, *size, DIM, dtype=torch.float64)
    expected = mixer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


def test_small_input_with_dilation() -> None:
    """It is padded to K * dilation."""
    module = natten.NeighborhoodAttention2D(DIM, HEADS, KERNEL, dilation=2)
    x = torch.randn(1, 5, 8, DIM)
    padded = nn.functional.pad(x, (0, 0, 0, 0, 0, 1))
    torch.testing.assert_close(module(x), module(padded)[:, :5])


def test_signatures() -> None:
    """Order and defaults of the positional arguments."""
    common = [('qkv_bias', True), ('qk_scale', None), ('attn_drop', 0.0), ('proj_drop', 0.0)]
    for cls, own in (
        (natten.NeighborhoodAttention2D, [('rel_pos_bias', True)]),
        (natten.NeighborhoodAttention2DSince017, [('is_causal', False), ('rel_pos_bias', False)]),
    ):
        parameters = [
            (p.name, p.default)
            for p in inspect.signature(cls).parameters.values()
            if p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        assert [name for name, _ in parameters[:3]] == ['dim', 'num_heads', 'kernel_size']
        assert parameters[3:] == [('dilation', 1), *own, *common]


def test_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice of a backend is that of the operator."""
    module = natten.NeighborhoodAttention2D(DIM, HEADS, KERNEL).double()
    monkeypatch.setenv('DAT_PP_BACKEND', 'native')
    with pytest.raises(ValueError, match="'native', which cannot run: it has no float64"):
        module(torch.zeros(1, 4, 4, DIM, dtype=torch.float64))


@pytest.mark.parametrize('bias', [True, False])
def test_autocast(bias: bool) -> None:
    module = natten.NeighborhoodAttention2D(DIM, HEADS, KERNEL, bias=bias)
    x = torch.randn(1, 4, 5, DIM)
    with torch.autocast('cpu', torch.bfloat16):
        out = module(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), module(x), rtol=0.05, atol=0.05)


def test_dropout() -> None:
    module = natten.NeighborhoodAttention2D(DIM, HEADS, KERNEL, attn_drop=0.9)
    x = torch.randn(1, 4, 5, DIM)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def functions_inputs(dilation: int) -> list[Tensor]:
    """query, key, value and rpb."""
    torch.manual_seed(0)
    maps = torch.randn(3, 2, HEADS, 7, 6, 4, dtype=torch.float64)
    return [*maps, torch.randn(HEADS, 5, 5, dtype=torch.float64)]


@pytest.mark.parametrize('dilation', [1, 2])
def test_functions(dilation: int) -> None:
    """QK, softmax and AV are the operator, and differentiable."""
    q, k, v, rpb = (x.requires_grad_() for x in functions_inputs(dilation))
    logits = natten.natten2dqkrpb(q * 4**-0.5, k, rpb, KERNEL, dilation)
    assert logits.shape == (2, HEADS, 7, 6, 9)
    out = natten.natten2dav(logits.softmax(-1), v, KERNEL, dilation)
    fused = natten.na2d(*(x.movedim(1, 3) for x in (q, k, v)), KERNEL, dilation, rpb=rpb)
    outs = out, fused.movedim(3, 1)
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(
        *(torch.autograd.grad(out.square().sum(), (q, k, v, rpb)) for out in outs)
    )


def test_aliases() -> None:
    q, k, v, rpb = functions_inputs(1)
    logits = natten.natten2dqkrpb(q, k, rpb, KERNEL, 1)
    assert torch.equal(natten.na2d_qk(q, k, (KERNEL, KERNEL), rpb=rpb), logits)
    assert torch.equal(natten.natten2dqkrpb(q, k, None, KERNEL, 1), natten.na2d_qk(q, k, KERNEL))
    assert torch.equal(natten.natten2dqk(q, k, KERNEL, 1), natten.na2d_qk(q, k, KERNEL))
    attn = logits.softmax(-1)
    assert torch.equal(
        natten.na2d_av(attn, v, KERNEL),
        natten.natten2dav(attn=attn, value=v, kernel_size=3, dilation=1),
    )


def test_logits_keep_the_dtype() -> None:
    """Also with a float32 bias, as under autocast."""
    q, k, _, rpb = functions_inputs(1)
    assert natten.natten2dqkrpb(q.half(), k.half(), rpb, KERNEL, 1).dtype == torch.float16


def make(*args: object, **kwargs: object) -> object:
    return natten.NeighborhoodAttention2D(*args, **kwargs)


MAP = torch.zeros(1, HEADS, 4, 5, 4)
REJECTED = {
    'is_causal is not supported by the stand-in for NATTEN': lambda: make(12, 3, 3, is_causal=True),
    'is_causal is not': lambda: natten.NeighborhoodAttention2DSince017(12, 3, 3, 1, (False, True)),
    'is_causal is': lambda: natten.na2d_qk(MAP, MAP, 3, is_causal=True),
    'additional_keys is not supported': lambda: natten.na2d_qk(MAP, MAP, 3, 1, MAP),
    'additional_values is not supported': lambda: natten.na2d_av(MAP, MAP, 3, 1, MAP),
    'kernel_size must be odd, got 4': lambda: make(12, 3, 4),
    r'kernel_size must be the same for both axes, got \(3, 5\)': lambda: make(12, 3, (3, 5)),
    r'dilation must be the same for both axes, got \(1, 2\)': lambda: make(12, 3, 3, (1, 2)),
    'num_heads must divide dim, got 5 and 12': lambda: make(12, 5, 3),
    'a 4 x 5 map is smaller than the 3 x 3 window with dilation 2': lambda: natten.natten2dqk(
        MAP, MAP, 3, 2
    ),
    'a 4 x 5 map is smaller than the 5 x 5 window$': lambda: natten.natten2dav(MAP, MAP, 5, 1),
    r'key must be \(1, 3, 4, 5, 4\) as query is, got \(3, 4, 5, 4\)': lambda: natten.natten2dqk(
        MAP, MAP[0], 3, 1
    ),
    r'rpb must be \(3, 5, 5\), got \(3, 3, 3\)': lambda: natten.natten2dqkrpb(
        MAP, MAP, torch.zeros(3, 3, 3), 3, 1
    ),
    r'attn must be \(1, 3, 4, 5, 9\), got \(1, 3, 4, 5, 4\)': lambda: natten.natten2dav(
        MAP, MAP, 3, 1
    ),
    'version must be from 0.14 to 0.17, got 0.20.1': lambda: natten.install('0.20.1'),
}


@pytest.mark.parametrize('message', REJECTED)
def test_rejected(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REJECTED[message]()


# A block as projects write it.
BLOCK = """
import torch
from torch import nn
from natten import NeighborhoodAttention2D as NeighborhoodAttention

class NATLayer(nn.Module):
    def __init__(self, dim, num_heads, kernel_size=7, dilation=None, qkv_bias=True, qk_scale=None):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = NeighborhoodAttention(
            dim, kernel_size=kernel_size, dilation=dilation, num_heads=num_heads,
            qkv_bias=qkv_bias, qk_scale=qk_scale, attn_drop=0.0, proj_drop=0.0)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))

layer = NATLayer(32, 2)
layer(torch.randn(1, 9, 10, 32)).square().sum().backward()
assert layer.attn.rpb.grad.any()
assert NATLayer(32, 2, dilation=2)(torch.randn(1, 5, 15, 32)).shape == (1, 5, 15, 32)
"""
PROGRAM = (
    """
import sys
for name in ('mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg', 'cv2', 'timm'):
    sys.modules[name] = None
from dat_pp.compat import natten
natten.install()
"""
    + BLOCK
)


def test_unchanged_code(tmp_path: Path) -> None:
    """A program that installs the stand-in and has PyTorch only."""
    run = subprocess.run(
        [sys.executable, '-c', PROGRAM], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ''


@pytest.fixture
def _no_natten(monkeypatch: pytest.MonkeyPatch) -> None:
    """NATTEN has not been imported, before and after the test."""
    names = ['natten', 'natten.functional', 'natten.natten2d', 'natten.na2d']
    for name in [*names, *(name for name in sys.modules if name.startswith('natten.'))]:
        monkeypatch.setitem(sys.modules, name, None)  # remembers what was there
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures('_no_natten')
def test_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'natten', natten)
    exec(BLOCK, {})


@pytest.mark.usefixtures('_no_natten')
def test_submodules() -> None:
    """As transformers and the published DAT++ import them."""
    natten.install()
    installed = importlib.import_module('natten')
    assert installed.__version__ == '0.14.6'
    assert importlib.util.find_spec('natten') is not None
    functional = importlib.import_module('natten.functional')
    assert installed.functional is functional
    assert functional.natten2dqkrpb is natten.natten2dqkrpb
    for name in ('natten', 'natten.natten2d', 'natten.na2d'):
        module = importlib.import_module(name)
        assert module.NeighborhoodAttention2D is natten.NeighborhoodAttention2D
    with pytest.raises(ModuleNotFoundError, match=r'natten\.context'):
        importlib.import_module('natten.context')


@pytest.mark.usefixtures('_no_natten')
def test_since_017() -> None:
    """Installing it again changes the version."""
    natten.install()
    natten.install('0.17.1+torch230cu121')
    installed = importlib.import_module('natten')
    installed.use_fused_na()
    assert installed.NeighborhoodAttention2D(DIM, HEADS, KERNEL).rpb is None
    assert installed.NeighborhoodAttention2D(DIM, HEADS, KERNEL, 1, False, True).rpb is not None
    assert importlib.import_module('natten.functional').na2d is natten.na2d


@pytest.mark.usefixtures('_no_natten')
def test_imported_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'natten', ModuleType('natten'))
    with pytest.raises(RuntimeError, match=r'natten has been imported: call install\(\) before'):
        natten.install()


def test_repr() -> None:
    module = natten.NeighborhoodAttention2D(DIM, HEADS, KERNEL, dilation=2)
    expected = 'head_dim=4, num_heads=3, kernel_size=3, dilation=2, rel_pos_bias=True'
    assert expected in repr(module)
