# Ours, after mmdet's recipe for Swin; DAT++ was never published with DINO.
_base_ = 'mmdet::dino/dino-5scale_swin-l_8xb2-12e_coco.py'
custom_imports = dict(imports=['dat_pp'], allow_failed_imports=False)

model = dict(backbone=dict(_delete_=True, type='DAT', drop_path_rate=0.2, with_cp=True))
