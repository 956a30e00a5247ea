"""Profile a pass: its time by class of operator."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler import profile, record_function

from .measure import quiet_stderr

# Names without 'aten::', underscores at the ends, '_forward' and '_backward'.
CLASSES = {
    'convolution': 'convolution conv2d mkldnn_convolution cudnn_convolution thnn_conv2d '
    'slow_conv2d conv_depthwise2d convolution_overrideable miopen_convolution nnpack_spatial',
    'matrix product': 'mm bmm addmm baddbmm matmul linear einsum mv addmv dot addbmm',
    'fused attention': 'scaled_dot_product_attention scaled_dot_product_flash_attention '
    'scaled_dot_product_flash_attention_for_cpu scaled_dot_product_efficient_attention '
    'scaled_dot_product_cudnn_attention scaled_dot_product_attention_math flash_attention '
    'efficient_attention',
    'softmax': 'softmax softmax_backward_data log_softmax logsumexp',
    'normalization': 'layer_norm native_layer_norm batch_norm native_batch_norm cudnn_batch_norm '
    'batch_norm_impl_index group_norm native_group_norm var_mean var',
    'activation': 'gelu relu silu tanh sigmoid threshold hardtanh',
    'sampling': 'grid_sampler grid_sampler_2d grid_sampler_2d_cpu_fallback upsample_bilinear2d '
    'upsample_bicubic2d upsample_nearest2d avg_pool2d',
    'gather and scatter': 'index index_put index_put_impl index_select gather scatter scatter_add '
    'scatter_reduce index_add take take_along_dim unsafe_index embedding index_copy '
    'unsafe_index_put masked_select',
    'elementwise': 'add sub rsub mul div neg abs exp exp2 log log2 pow square sqrt rsqrt sign '
    'floor round where lerp addcmul addcdiv maximum minimum lt le gt ge eq ne bitwise_and '
    'logical_and logical_not masked_fill bitwise_not and remainder fmod floor_divide reciprocal '
    'sgn clamp clamp_min clamp_max isfinite',
    'reduction': 'sum mean amax amin max min prod cumsum any all norm linalg_vector_norm argmax',
    'copy and layout': 'copy clone contiguous cat stack flip roll pad constant_pad_nd fill zero '
    'zeros zeros_like empty empty_like empty_strided full ones ones_like new_zeros new_empty '
    'resize to to_copy repeat repeat_interleave im2col col2im unfold_copy tril triu arange '
    'linspace reshape view permute transpose expand slice select as_strided unsqueeze squeeze '
    'narrow unbind split split_with_sizes chunk flatten unflatten movedim t detach alias '
    'reshape_alias unsafe_view expand_as unfold slice_backward select_backward new_empty_strided '
    'lift_fresh result_type meshgrid index_fill',
}
"""Class -> operators. Views count as copies: what calls for another layout often copies."""
CLASS_OF = {name: cls for cls, names in CLASSES.items() for name in names.split()}
AUTOGRAD = 'autograd'
REST = 'rest'
OUTSIDE = 'outside of operators'
WHOLE = 'benchmark: whole pass'


def class_of(name: str) -> str:
    """Return the class of an operator by its name in a profile."""
    if name == WHOLE:
        return OUTSIDE
    namespace, _, operator = name.partition('::')
    # With gradients the forward pass of a custom operator runs in a node named after it.
    if namespace == 'dat_pp' or name.startswith('GeneratedBackwardFor_dat_pp_'):
        return 'fused attention'
    if namespace != 'aten':  # nodes of the graph, what calls them, and sums of gradients
        return AUTOGRAD
    operator = operator.strip('_')
    for ending in ('', '_backward', '_forward'):
        found = CLASS_OF.get(operator.removesuffix(ending))
        if found:
            return found
    return REST


def profile_pass(run: Callable[[], None], device: torch.device) -> dict[str, Any]:
    """Seconds of one pass by class of operator and by operator, largest first.

    On a CPU the operators' self times and the time between them add up to the pass; on a GPU the
    times are those of the kernels that the operators launch.
    """
    on_gpu = device.type == 'cuda'
    with quiet_stderr(), profile(use_device='cuda' if on_gpu else None) as prof:
        with record_function(WHOLE):
            run()
        if on_gpu:
            torch.cuda.synchronize(device)
    operators: dict[str, float] = defaultdict(float)
    for event in prof.function_events:
        if event.device_type == DeviceType.CPU:
            own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            operators[event.name] += own / 1e6
            if event.name == WHOLE:
                total = event.cpu_time_total / 1e6
    classes: dict[str, float] = defaultdict(float)
    for name, own in operators.items():
        classes[class_of(name)] += own
    return dict(
        total_s=sum(operators.values()) if on_gpu else total,
        classes_s=_largest_first(classes),
        operators_s=_largest_first(operators),
    )


def _largest_first(times: dict[str, float]) -> dict[str, float]:
    return dict(sorted(times.items(), key=lambda item: -item[1]))
