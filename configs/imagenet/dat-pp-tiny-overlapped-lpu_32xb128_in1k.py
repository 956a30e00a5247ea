# Ablation of DAT-T++: plain, with the overlapped embedding and LPU. With ConvFFN it is DAT-T++.
_base_ = './dat-pp-tiny_32xb128_in1k.py'

model = dict(backbone=dict(arch=dict(_delete_=True, base='dat-t++', conv_ffn=False)))
