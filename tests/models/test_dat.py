"""The backbone as MMLab users meet it: arguments, sizes, precisions, layouts, compilation."""

import copy

import pytest
import torch
from tiny_models import ALL_MIXERS, TINY, V1, build
from torch import nn

from dat_pp import DAT


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(out_indices=(0, 4)), 'different stages of 0, 1, 2, 3'),
        (dict(out_indices=()), 'different stages'),
        (dict(out_indices=(1, 1)), 'different stages'),
        (dict(frozen_stages=5), 'frozen_stages must be -1 to 4, got 5'),
        (dict(drop_path_rate=1.0), r'drop_path_rate must be in \[0, 1\), got 1.0'),
        (dict(attn_drop_rate=-0.1), 'attn_drop_rate'),
        (dict(drop_rate=2), 'drop_rate'),
    ],
)
def test_invalid_argument(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DAT(TINY, **kwargs)


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 2), (3,), 0])
def test_out_indices(out_indices) -> None:
    outs = build(out_indices=out_indices)(torch.rand(1, 3, 64, 96))
    indices = (out_indices,) if isinstance(out_indices, int) else out_indices
    assert isinstance(outs, tuple)
    sizes = [(1, TINY['embed_dims'][i], 16 >> i, 24 >> i) for i in indices]
    assert [tuple(out.shape) for out in outs] == sizes


@pytest.mark.parametrize('size', [(1, 1), (3, 50), (33, 31), (65, 7), (100, 129)])
@pytest.mark.parametrize('arch', [TINY, ALL_MIXERS])
def test_any_size(arch: dict, size: tuple[int, int]) -> None:
    outs = build(arch)(torch.rand(2, 3, *size))
    for i, out in enumerate(outs):
        assert out.shape[2:] == tuple(-(-side // (4 << i)) for side in size)
        assert out.isfinite().all()


@pytest.mark.parametrize('size', [(1, 1), (3, 50), (33, 31), (100, 129)])
@pytest.mark.parametrize('changes', [{}, dict(mixers=['D', 'D', 'D', 'D'], use_offset=False)])
def test_any_size_2022(changes: dict, size: tuple[int, int]) -> None:
    outs = build(dict(V1, **changes))(torch.rand(1, 3, *size))
    for i, out in enumerate(outs):
        assert out.shape[2:] == tuple(max(1, side // (4 << i)) for side in size)
        assert out.isfinite().all()


@pytest.mark.parametrize('position_bias', ['none', 'dwconv', 'fixed', 'log_cpb'])
@pytest.mark.parametrize('offset_range', [-1, 0, 2])
def test_ablations_at_any_size(position_bias: str, offset_range: float) -> None:
    arch = dict(TINY, position_bias=position_bias, offset_range=offset_range, use_offset=True)
    model = build(arch).train()
    for size in [(1, 1), (40, 90)]:
        outs = model(torch.rand(1, 3, *size))
        sum(out.square().mean() for out in outs).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_offset_kernel_equal_to_stride() -> None:
    """There is no padding then, and a map smaller than the kernel still gives one sample."""
    model = build(dict(TINY, offset_kernel_sizes=[8, 4, 2, 1]))
    assert all(out.isfinite().all() for out in model(torch.rand(1, 3, 20, 70)))


def test_gradients_reach_every_parameter() -> None:
    model = build(dict(ALL_MIXERS, layer_scale_init_value=0.1)).train()
    sum(out.square().mean() for out in model(torch.rand(2, 3, 64, 64))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_drop_path_rises_linearly() -> None:
    model = build(drop_path_rate=0.7)
    rates = [block.drop_path.rate for stage in model.stages for block in stage]
    assert rates == pytest.approx(torch.linspace(0, 0.7, 8).tolist())


def test_dropout_and_drop_path_act_in_training_only() -> None:
    x = torch.rand(4, 3, 32, 32)
    for rate in ('drop_rate', 'attn_drop_rate', 'drop_path_rate'):
        model = build(ALL_MIXERS, **{rate: 0.5})
        plain = build(ALL_MIXERS)
        assert relative_error(model(x)[-1], plain(x)[-1]) < 1e-5
        model.train()
        assert relative_error(model(x)[-1], plain(x)[-1]) > 1e-3


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 3, 4])
def test_frozen_stages(frozen_stages: int) -> None:
    model = build(frozen_stages=frozen_stages, out_indices=(0, 2, 3), drop_path_rate=0.1).train()
    model.train()
    frozen = set()
    if frozen_stages >= 0:
        frozen = {'stem'} | {f'stages.{i}' for i in range(frozen_stages)}
        frozen |= {f'downsamples.{i}' for i in range(frozen_stages - 1)}
        frozen |= {f'norm{i}' for i in range(frozen_stages)}
    for name, parameter in model.named_parameters():
        expected = any(name.startswith(part + '.') for part in frozen)
        assert parameter.requires_grad is not expected, name
    for i, stage in enumerate(model.stages):
        assert stage.training is (i >= frozen_stages)
    if frozen_stages < 4:
        sum(out.mean() for out in model(torch.rand(1, 3, 32, 32))).backward()


def test_activation_checkpointing() -> None:
    """Same output, gradients and dropout masks with less memory."""
    x = torch.rand(2, 3, 64, 64)
    grads = []
    for with_cp in (False, True):
        model = build(ALL_MIXERS, with_cp=with_cp, drop_path_rate=0.3, drop_rate=0.1).train()
        saved = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            loss = sum(out.square().mean() for out in model(x))
        loss.backward()
        grads.append([loss.detach(), *(p.grad for p in model.parameters()), saved])
    *plain, stored = grads[0]
    *checkpointed, stored_checkpointed = grads[1]
    for a, b in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(a, b)
    assert stored_checkpointed < stored / 4


def test_layer_depth() -> None:
    model = build()
    depth = {n: model.get_layer_depth('backbone.' + n, 'backbone.') for n in model.state_dict()}
    assert {total for _, total in depth.values()} == {8 + 2}
    assert depth['stem.conv1.weight'][0] == 0
    assert depth['stages.0.0.norm1.weight'][0] == 1
    assert depth['stages.0.1.mixer.rpe_table'][0] == 2
    assert depth['downsamples.0.conv.weight'] == depth['stages.1.0.norm1.weight'] == (3, 10)
    assert depth['stages.3.1.ffn.fc2.bias'][0] == 8
    assert depth['norm3.weight'][0] == 9
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (9, 10)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_keeps_positions_in_float32(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dat_pp.models.mixers import deformable

    x = torch.rand(1, 3, 64, 64)
    model = build()
    expected = model(x)
    seen = []

    def spy(q, k, v, positions, table, query_y, query_x, dropout_p):
        seen.append((q.dtype, positions.dtype, query_y.dtype))
        return operator(q, k, v, positions, table, query_y, query_x, dropout_p)

    operator = deformable.deformable_attention
    monkeypatch.setattr(deformable, 'deformable_attention', spy)
    with torch.autocast('cpu', dtype):
        outs = model(x)
    assert set(seen) == {(dtype, torch.float32, torch.float32)}
    for out, want in zip(outs, expected, strict=True):
        assert relative_error(out.float(), want) < 0.1
    # The positions themselves: no further from float32 than a depthwise convolution in half
    # precision puts them, not rounded to the 2^-8 (bfloat16) steps of the dtype.
    mixer = model.stages[0][1].mixer
    q_map = torch.rand(1, 16, 16, 16)
    with torch.autocast('cpu', dtype):
        positions = mixer.sample_positions(q_map.to(dtype))
    assert (positions.to(dtype).float() != positions).any()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_whole_model_in_one_dtype(dtype: torch.dtype) -> None:
    x = torch.rand(1, 3, 64, 64)
    model = build(ALL_MIXERS)
    expected = model(x)
    outs = model.to(dtype)(x.to(dtype))
    for out, want in zip(outs, expected, strict=True):
        assert out.dtype == dtype
        assert relative_error(out.double(), want.double()) < (1e-4 if dtype.itemsize > 2 else 0.3)


@pytest.mark.parametrize('arch', [TINY, ALL_MIXERS, V1])
def test_memory_layouts(arch: dict) -> None:
    model = build(arch)
    x = torch.rand(2, 3, 50, 70)
    expected = model(x)
    strided = torch.rand(2, 6, 50, 140)[:, ::2, :, ::2].copy_(x)
    assert not strided.is_contiguous()
    outs = model(strided)
    channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    last = channels_last(x.to(memory_format=torch.channels_last))
    for out, out_last, want in zip(outs, last, expected, strict=True):
        # mmcv's RoIAlign reads the memory of its input as NCHW, whatever the strides.
        assert out.is_contiguous()
        assert out_last.is_contiguous()
        torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(out_last, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('arch', [TINY, dict(ALL_MIXERS, layer_scale_init_value=0.1), V1])
@pytest.mark.parametrize('training', [False, True])
def test_channels_last_throughout(arch: dict, training: bool) -> None:
    """No layer falls back to NCHW, which the next one would have to undo; only outputs are NCHW."""
    model = build(arch, drop_path_rate=0.2, drop_rate=0.1).train(training)
    blocks = [block for stage in model.stages for block in stage]
    parts = [*model.stem, *model.downsamples, *blocks]
    parts += [part for block in blocks for part in block.children() if part is not block.drop_path]
    seen = set()

    def check(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        seen.add(module)
        for x in (*inputs, output):
            assert x.is_contiguous(memory_format=torch.channels_last), type(module).__name__

    for part in parts:
        part.register_forward_hook(check)
    outs = model(torch.rand(2, 3, 130, 162))
    assert seen == set(parts)
    assert all(out.is_contiguous() for out in outs)


@pytest.mark.parametrize(
    ('backend', 'arch', 'out_indices'),
    [
        ('aot_eager', TINY, (0,)),
        pytest.param('aot_eager', ALL_MIXERS, (0, 1, 2, 3), marks=pytest.mark.slow),
        pytest.param('aot_eager', V1, (0, 1, 2, 3), marks=pytest.mark.slow),
        pytest.param('inductor', TINY, (0,), marks=pytest.mark.slow),
    ],
)
def test_compile(backend: str, arch: dict, out_indices: tuple[int, ...]) -> None:
    """No graph breaks; same output and, except with inductor, which takes minutes, gradients."""
    model = build(arch, out_indices=out_indices).train()
    compiled = torch.compile(copy.deepcopy(model), backend=backend, fullgraph=True)
    x = torch.rand(1, 3, 64, 64)
    results = []
    for net in (model, compiled):
        with torch.set_grad_enabled(backend == 'aot_eager'):
            outs = net(x)
        results.append([*outs])
        if backend == 'aot_eager':
            sum(out.square().mean() for out in outs).backward()
            results[-1] += [p.grad for p in net.parameters()]
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(plain, fast, rtol=1e-3, atol=1e-4)
