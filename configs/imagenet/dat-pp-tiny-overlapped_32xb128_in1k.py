# Ablation of DAT-T++: plain, with the overlapped embedding.
_base_ = './dat-pp-tiny_32xb128_in1k.py'

model = dict(backbone=dict(arch=dict(_delete_=True, base='dat-t++', lpu=False, conv_ffn=False)))
