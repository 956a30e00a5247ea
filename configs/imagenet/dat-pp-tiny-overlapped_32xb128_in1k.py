# Ablation of DAT-T++: plain, with overlapped embedding.
_base_ = './dat-pp-tiny_32xb128_in1k.py'

model = dict(
    backbone=dict(arch=dict(_delete_=True, base=_base_.dat.arch, lpu=False, conv_ffn=False))
)
