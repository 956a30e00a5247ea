_base_ = __import__('dat_pp').upstream('mmseg::_base_/datasets/ade20k.py')

# The multi-scale test resizes images to fit (2048 r, 512 r) and keeps their aspect ratio; mmseg's
# own pipeline multiplies the size of the image by r.
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(int(2048 * r), int(512 * r)), keep_ratio=True)
                for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
