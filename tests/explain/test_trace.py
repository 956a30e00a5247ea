"""A trace says what the attention did: weights, positions, and the model as it was before."""

import pytest
import torch
from fresh import python
from tiny_models import ALL_MIXERS, TINY, V1, build
from torch import Tensor, nn

from dat_pp import DAT
from dat_pp.explain import DeformableBlock, NeighborhoodBlock, blocks, trace
from dat_pp.models.layers import merge_heads, pad_bottom_right, split_heads
from dat_pp.models.mixers import DeformableAttention

SINGLE = dict(TINY, mixers=['D'] * 4)
VARIANTS = {
    'dat++': ALL_MIXERS,
    'dat': V1,
    'dat, unbounded offsets': dict(V1, offset_range=-1),
    'dat++, bounded offsets': dict(SINGLE, offset_range=2),
    'bias none': dict(SINGLE, position_bias='none'),
    'bias dwconv': dict(SINGLE, position_bias='dwconv'),
    'bias fixed': dict(SINGLE, position_bias='fixed'),
    'bias log_cpb': dict(SINGLE, position_bias='log_cpb'),
    'average pooling': dict(SINGLE, use_offset=False),
}
SIZES = [(64, 64), (50, 90), (9, 33)]


def model_of(arch: dict, dtype: torch.dtype = torch.float64) -> DAT:
    """A backbone whose offsets and biases are large enough to matter."""
    model = build(arch).to(dtype)
    for name, parameter in model.named_parameters():
        if 'conv_offset.proj' in name or 'rpe_table' in name or 'rpb' in name:
            nn.init.normal_(parameter, std=0.5)
    return model


def calls_of(model: DAT) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of every mixer of the model's next call, by the name of its block."""
    calls = {}
    for i, stage in enumerate(model.stages):
        for j, block in enumerate(stage):

            def keep(module: nn.Module, inputs: tuple, output: Tensor, name: str) -> None:
                calls[name] = inputs[0].detach(), output.detach()

            name = f'{i}.{j}'
            block.mixer.register_forward_hook(lambda m, x, y, name=name: keep(m, x, y, name))
    return calls


def grid_of(block: DeformableBlock | NeighborhoodBlock) -> Tensor:
    rows, columns = (torch.arange(length) for length in block.size)
    return torch.cartesian_prod(rows, columns)


def output_of(block: DeformableBlock | NeighborhoodBlock, mixer: nn.Module, x: Tensor) -> Tensor:
    """A mixer's output from the weights of a trace, its values and its projection."""
    height, width = block.size
    weights = block.attention(grid_of(block))
    assert weights.min() >= 0
    if isinstance(block, NeighborhoodBlock):
        torch.testing.assert_close(weights.sum((3, 4)), torch.ones_like(weights[..., 0, 0]))
        padded = pad_bottom_right(x, mixer.kernel_size, mixer.kernel_size).permute(0, 2, 3, 1)
        v = mixer.qkv(padded).chunk(3, -1)[2].unflatten(-1, (mixer.num_heads, -1))
        near = block.neighbors(grid_of(block))
        near = v[:, near[..., 0], near[..., 1]]  # (B, Q, K, K, heads, d)
        out = torch.einsum('bhqij,bqijhd->bqhd', weights, near).flatten(2)
        return mixer.proj(out).unflatten(1, (height, width)).permute(0, 3, 1, 2)
    torch.testing.assert_close(weights.sum(3), torch.ones_like(weights[..., 0]))
    if mixer.use_offset:
        sampled = mixer.sample(x, block.positions.unflatten(2, block.grid))
    else:
        kernel = min(mixer.stride, height), min(mixer.stride, width)
        sampled = nn.functional.avg_pool2d(x, kernel)
    v = split_heads(mixer.proj_v(sampled), mixer.num_heads).flatten(2, 3)
    out = merge_heads((weights @ v).unflatten(2, (height, width)))
    if mixer.position_bias == 'dwconv':
        out = out + mixer.rpe_table(mixer.proj_q(x))
    return mixer.proj_out(out)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('variant', VARIANTS)
def test_weights_and_values_give_the_output(variant, size):
    model = model_of(VARIANTS[variant])
    calls = calls_of(model)
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    traced = trace(model, images)
    assert [block.name for block in traced] == list(calls)
    for block in [*traced.deformable, *traced.neighborhood]:
        x, expected = calls[block.name]
        assert block.size == x.shape[2:]
        mixer = model.stages[block.stage][block.index].mixer
        torch.testing.assert_close(output_of(block, mixer, x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_weights_are_in_float32_or_more(dtype):
    """In the model's own backend and precision; the output agrees within the latter."""
    model = model_of(ALL_MIXERS, dtype)
    calls = calls_of(model)
    traced = trace(model, torch.rand(1, 3, 64, 96))
    model = model.float()
    for block in [*traced.deformable, *traced.neighborhood]:
        x, expected = (value.float() for value in calls[block.name])
        assert block.q.dtype == block.k.dtype == torch.float32
        assert block.attention([(0, 0)]).dtype == torch.float32
        mixer = model.stages[block.stage][block.index].mixer
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        difference = (output_of(block, mixer, x) - expected).abs().max()
        assert difference <= tolerance * expected.abs().max(), block.name


@pytest.mark.parametrize('variant', VARIANTS)
def test_received_is_the_sum_over_queries(variant, monkeypatch):
    traced = trace(model_of(VARIANTS[variant]), torch.rand(2, 3, 64, 48, dtype=torch.float64))
    for block in traced.deformable:
        every = block.attention(grid_of(block))
        for limit in (2**22, 50, 1):  # at once, in blocks, query by query
            monkeypatch.setattr(blocks, 'MAX_LOGITS', limit)
            torch.testing.assert_close(block.received(), every.sum(2))


@pytest.mark.parametrize('variant', [name for name in VARIANTS if name != 'average pooling'])
def test_single_pixel_is_sampled_where_the_trace_says(variant):
    """Of a map that is zero but for one pixel, a sample takes its bilinear weight there."""
    model = model_of(VARIANTS[variant])
    traced = trace(model, torch.rand(1, 3, 64, 96, dtype=torch.float64))
    for block in traced.deformable:
        mixer = model.stages[block.stage][block.index].mixer
        height, width = block.size
        cells = (block.positions + 1) / 2 * (torch.tensor(block.size) - 1)  # (1, g, N, 2)
        for y, x in [(0, 0), (height // 2, width // 2), (height - 1, 0)]:
            near = (1 - (cells - torch.tensor([y, x])).abs()).clamp(min=0).prod(-1)
            pixel = torch.zeros(1, mixer.proj_q.in_channels, height, width, dtype=torch.float64)
            pixel[:, :, y, x] = 1
            sampled = mixer.sample(pixel, block.positions.unflatten(2, block.grid))
            for values, weight in zip(sampled.chunk(block.groups, 1), near[0]):
                assert torch.allclose(values.flatten(2)[0], weight, atol=1e-9)


def test_positions_are_those_of_the_call(monkeypatch):
    model, images = model_of(ALL_MIXERS), torch.rand(1, 3, 64, 64, dtype=torch.float64)
    traced, sampled = trace(model, images), []
    sample = DeformableAttention.sample

    def spy(self: DeformableAttention, x: Tensor, positions: Tensor) -> Tensor:
        sampled.append(positions.flatten(2, 3))
        return sample(self, x, positions)

    monkeypatch.setattr(DeformableAttention, 'sample', spy)
    with torch.no_grad():
        model(images)
    for block, positions in zip(traced.deformable, sampled, strict=True):
        assert torch.equal(block.positions, positions)


@pytest.mark.parametrize('name', ['dat++', 'dat'])
def test_reference_points(name):
    """Without offsets, samples lie at the reference points; those of DAT are evenly spaced."""
    model = build(VARIANTS[name]).double()
    for parameter in [p for n, p in model.named_parameters() if 'conv_offset.proj' in n]:
        nn.init.zeros_(parameter)
    for block in trace(model, torch.rand(1, 3, 64, 96, dtype=torch.float64)).deformable:
        bound = 1 if name == 'dat++' else 9  # positions of DAT++ are clamped
        torch.testing.assert_close(block.positions, block.reference.clamp(-bound, bound))
        steps = block.reference.unflatten(2, block.grid).diff(dim=2)[..., 0]
        assert steps.numel() == 0 or torch.allclose(steps, steps.flatten()[0])


class Unusable(nn.Module):
    def forward(self, *_: object) -> None:
        raise RuntimeError('stopped')


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def state_of(model: nn.Module) -> list:
    return [
        hooks_of(model),
        [m.training for m in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
    ]


@pytest.mark.parametrize('fails', [False, True])
def test_model_is_left_as_it_was(fails):
    model = build(TINY, frozen_stages=2, drop_path_rate=0.2).train()
    model.stages[3][0].eval()
    if fails:
        model.stages[3][1].ffn = Unusable()
    before = state_of(model)
    if fails:
        with pytest.raises(RuntimeError, match='stopped'):
            trace(model, torch.rand(1, 3, 32, 32))
    else:
        block = trace(model, torch.rand(1, 3, 32, 32)).deformable[0]
        assert not block.q.requires_grad
    assert state_of(model) == before


def test_trace_does_not_change_with_the_model():
    model, images = model_of(TINY), torch.rand(1, 3, 64, 96, dtype=torch.float64)
    traced = trace(model, images)
    before = [block.received() for block in traced.deformable]
    weights = [block.attention([(0, 0)]) for block in traced]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    assert all(map(torch.equal, before, (block.received() for block in traced.deformable)))
    assert all(map(torch.equal, weights, (block.attention([(0, 0)]) for block in traced)))


def test_dropout_and_stochastic_depth_are_off():
    model = build(TINY, drop_path_rate=0.9, drop_rate=0.5, attn_drop_rate=0.5)
    images = torch.rand(4, 3, 64, 64)
    expected = trace(model, images)[-1].received()
    assert torch.equal(trace(model.train(), images)[-1].received(), expected)


def tensors_in(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, nn.Module):
        return list(value.parameters())
    return [t for inner in getattr(value, '__dict__', {}).values() for t in tensors_in(inner)]


def test_memory_grows_with_maps_not_with_attention():
    traced = trace(build(TINY), torch.rand(1, 3, 800, 1344))
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for block in traced
        for tensor in tensors_in(block)
    }
    maps = sum(2 * block.q.nbytes for block in traced)
    matrices = sum(
        4 * block.q[..., 0].numel() * block.k[0, 0, ..., 0].numel() for block in traced.deformable
    )
    assert sum(storages.values()) <= min(1.05 * maps, matrices / 20)
    weights = traced.block('0.1').attention([(y, 7) for y in range(100)])
    assert weights.shape == (1, 1, 100, 25 * 42)


PEAK = """
import resource, sys, torch
from dat_pp import DAT
from dat_pp.explain import trace

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

model = DAT(eval(sys.argv[1])).eval()
trace(model, torch.rand(1, 3, 64, 64))
before = peak()
trace(model, torch.rand(1, 3, 800, 1344)).block('0.1').received()
print(peak() - before)
"""


@pytest.mark.slow
def test_peak_memory_of_a_large_image(tmp_path):
    """Less than an attention matrix, 269 MiB for a head of the first stage, and its bias."""
    done = python(tmp_path, '-c', PEAK, str(TINY))
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 250


def test_queries_are_checked():
    traced = trace(build(ALL_MIXERS), torch.rand(1, 3, 64, 64))
    for block in [*traced.deformable, *traced.neighborhood]:
        height, width = block.size
        for query in [(height, 0), (0, width), (-1, 0)]:
            with pytest.raises(ValueError, match='outside') as error:
                block.attention([(0, 0), query])
            assert f'query {query} is outside of the {height} x {width} map' in str(error.value)
        for queries in [(0, 0), [[0, 0, 0]], [[0.5, 0.5]]]:
            with pytest.raises(ValueError, match='queries must be integers'):
                block.attention(queries)
    with pytest.raises(ValueError, match=r'block 1\.0 is local window attention'):
        traced.block('1.0').attention([(0, 0)])
    with pytest.raises(ValueError, match=r'block 0\.0 is neighborhood attention, not deformable'):
        traced.block('0.0').received()
    with pytest.raises(ValueError, match=r"no block '4\.0'; there are 0\.0, 0\.1"):
        traced.block('4.0')


def test_images_are_checked():
    with pytest.raises(ValueError, match='no DAT backbone in this Conv2d'):
        trace(nn.Conv2d(3, 3, 1), torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match='images must be a'):
        trace(build(), torch.rand(3, 32, 32))
    image = trace(build(), torch.rand(1, 3, 32, 32)).images[0]
    with pytest.raises(ValueError, match='geometry must be one per image, 2; got 1'):
        trace(build(), torch.rand(2, 3, 32, 32), [image])
