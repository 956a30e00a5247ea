"""One config per family, and the `--cfg-options` that make its runs small."""

from dataclasses import dataclass

BOXES, MASKS = ('coco/bbox_mAP', 'coco/bbox_mAP_50'), ('coco/segm_mAP', 'coco/segm_mAP_50')
TOP, MIOU = ('accuracy/top1', 'accuracy/top5'), ('aAcc', 'mIoU', 'mAcc')

ALWAYS = """
    randomness.seed=0 default_hooks.logger.interval=1 log_processor.window_size=1
    default_hooks.checkpoint.save_optimizer=False
    train_dataloader.num_workers=0 train_dataloader.persistent_workers=False
    val_dataloader.num_workers=0 val_dataloader.persistent_workers=False
    test_dataloader.num_workers=0 test_dataloader.persistent_workers=False
"""
# Plain AdamW in float32 (many CPUs only emulate bfloat16) at a constant rate.
REPEATED = """
    optim_wrapper._delete_=True optim_wrapper.type=OptimWrapper
    optim_wrapper.optimizer.type=AdamW optim_wrapper.optimizer.lr={lr} param_scheduler=None
    model.backbone.drop_path_rate=0.0
"""
EPOCHS = 'train_cfg.max_epochs={count} default_hooks.checkpoint.interval={count} '
ITERATIONS = """
    train_cfg.max_iters={count} train_cfg.val_interval={count}
    default_hooks.checkpoint.interval={count}
"""

ONE_IMAGE = 'train_dataloader.dataset.indices=1 train_dataloader.batch_size=1 '
IMAGENET_FIXED = """
    train_dataloader.batch_size=2 train_dataloader.dataset.indices=2
    train_dataloader.dataset.pipeline.1.scale=128
    train_dataloader.dataset.pipeline.1.crop_ratio_range=(1.0,1.0)
    train_dataloader.dataset.pipeline.1.aspect_ratio_range=(1.0,1.0)
    train_dataloader.dataset.pipeline.2.prob=0.0
    train_dataloader.dataset.pipeline.3.magnitude_level=0
    train_dataloader.dataset.pipeline.3.magnitude_std=0
    train_dataloader.dataset.pipeline.4.erase_prob=0.0
    model.train_cfg.augments=None
"""
# Both branches of DETR's augmentation, and the test.
COCO_SMALL = """
    train_dataloader.dataset.pipeline.3.transforms.0.0.scales=[(96,160),(128,160)]
    train_dataloader.dataset.pipeline.3.transforms.1.0.scales=[(80,160),(96,160)]
    train_dataloader.dataset.pipeline.3.transforms.1.1.crop_size=(64,96)
    train_dataloader.dataset.pipeline.3.transforms.1.2.scales=[(96,160),(128,160)]
    test_dataloader.dataset.pipeline.1.scale=(160,128)
    val_dataloader.dataset.pipeline.1.scale=(160,128)
"""
COCO_FIXED = """
    train_dataloader.dataset.pipeline.2.prob=0.0
    train_dataloader.dataset.pipeline.3.prob=[1.0,0.0]
    train_dataloader.dataset.pipeline.3.transforms.0.0.scales=[(96,128)]
"""
JITTER_SMALL = """
    model.data_preprocessor.batch_augments.0.size=(128,128)
    train_dataloader.dataset.pipeline.3.scale=(128,128)
    train_dataloader.dataset.pipeline.4.crop_size=(128,128)
    test_dataloader.dataset.pipeline.1.scale=(160,128)
    val_dataloader.dataset.pipeline.1.scale=(160,128)
"""
JITTER_FIXED = """
    train_dataloader.dataset.pipeline.2.prob=0.0
    train_dataloader.dataset.pipeline.3.ratio_range=(1.0,1.0)
"""
ADE_SMALL = """
    model.data_preprocessor.size=(128,128)
    train_dataloader.dataset.pipeline.3.crop_size=(128,128)
    test_dataloader.dataset.pipeline.1.scale=(512,128)
    val_dataloader.dataset.pipeline.1.scale=(512,128)
"""
ADE_FIXED = """
    train_dataloader.dataset.pipeline.4.prob=0.0
    train_dataloader.dataset.pipeline.5.brightness_delta=0
    train_dataloader.dataset.pipeline.5.contrast_range=(1.0,1.0)
    train_dataloader.dataset.pipeline.5.saturation_range=(1.0,1.0)
    train_dataloader.dataset.pipeline.5.hue_delta=1
"""
LIGHT_MASK2FORMER = """
    {head}.num_queries=20 {head}.transformer_decoder.num_layers=2
    {head}.pixel_decoder.encoder.num_layers=1 {points}.num_points=500
"""
LIGHT_CASCADE = ' '.join(
    f'{head}.conv_out_channels=64 {head}.fc_out_channels=128'
    for head in (f'model.roi_head.bbox_head.{i}' for i in range(3))
)
LIGHT_DINO = 'model.num_queries=50 model.encoder.num_layers=1 model.decoder.num_layers=2'
RESIZE = 'train_dataloader.dataset.pipeline.2.scale=(512,128) '
SHORT_EDGE = 'train_dataloader.dataset.pipeline.2.scales=[96,128] '
ANY_SCORE = 'model.test_cfg.score_thr=0.0 '
FEW_ROIS = """
    model.train_cfg.rpn_proposal.nms_pre=100 model.train_cfg.rpn_proposal.max_per_img=100
    model.test_cfg.rpn.nms_pre=20 model.test_cfg.rpn.max_per_img=20
    model.test_cfg.rcnn.score_thr=0.0 model.test_cfg.rcnn.max_per_img=10
"""
FEW_SAMPLES = 'model.train_cfg.rcnn.sampler.num=8 '
FEW_SAMPLES_CASCADE = ' '.join(f'model.train_cfg.rcnn.{i}.sampler.num=8 ' for i in range(3))
# A few blocks instead of the 26 of DAT++.
DEPTH = '[N,D,ND,D]'


@dataclass
class Family:
    """A config and the options that make it small.

    Attributes:
        config: Path below configs/, without the suffix.
        metrics: Metrics that testing must report.
        length: Options that set the length and write a checkpoint at the end.
        small: Options that make images smaller.
        fixed: Options that remove randomness from the repeated batch.
        light: Options that shrink the heads for the run on the repeated batch.
        lr: Learning rate of that run.
        depth: Mixers of the stages in place of the model's, which would take too long.
    """

    config: str
    metrics: tuple[str, ...]
    length: str
    small: str
    fixed: str
    light: str = ''
    lr: float = 3e-4
    depth: str = ''

    def options(self, count: int, depth: str) -> list[str]:
        options = ALWAYS + self.length.format(count=count) + self.small
        if depth:
            base = 'dat-b++' if 'base' in self.config else 'dat-t++'
            arch = f'_delete_=True base={base} mixers={depth}'
            options += ' '.join(f' model.backbone.arch.{each}' for each in arch.split())
            options += ' model.backbone.init_cfg=None'
        return options.split()


FAMILIES = {
    'classification 224': Family(
        'imagenet/dat-pp-tiny_32xb128_in1k', TOP, EPOCHS,
        ONE_IMAGE + 'param_scheduler.0.end=1 param_scheduler.1.begin=1', IMAGENET_FIXED,
    ),
    'classification 384': Family(
        'imagenet/dat-pp-base_64xb24_in1k-384px', TOP, EPOCHS,
        ONE_IMAGE, IMAGENET_FIXED, lr=1e-4, depth=DEPTH,
    ),
    'RetinaNet': Family(
        'coco/retinanet_dat-pp-t_fpn_32xb2-amp-ms-crop-1x_coco', BOXES, EPOCHS,
        COCO_SMALL + ANY_SCORE, COCO_FIXED, lr=1e-4,
    ),
    'Mask R-CNN': Family(
        'coco/mask-rcnn_dat-pp-t_fpn_32xb2-amp-ms-crop-1x_coco', BOXES + MASKS, EPOCHS,
        COCO_SMALL + FEW_ROIS + FEW_SAMPLES, COCO_FIXED, lr=1e-4, depth=DEPTH,
    ),
    'Cascade Mask R-CNN': Family(
        'coco/cascade-mask-rcnn_dat-pp-t_fpn_32xb2-amp-ms-crop-1x_coco', BOXES + MASKS, EPOCHS,
        COCO_SMALL + FEW_ROIS + FEW_SAMPLES_CASCADE, COCO_FIXED, LIGHT_CASCADE,
        lr=5e-4, depth=DEPTH,
    ),
    'DINO': Family(
        'coco/dino-5scale_dat-pp-t_8xb2-12e_coco', BOXES, EPOCHS,
        COCO_SMALL + LIGHT_DINO, COCO_FIXED, depth=DEPTH,
    ),
    'Mask2Former COCO': Family(
        'coco/mask2former_dat-pp-t_8xb2-lsj-50e_coco', BOXES + MASKS, ITERATIONS,
        JITTER_SMALL
        + LIGHT_MASK2FORMER.format(head='model.panoptic_head', points='model.train_cfg'),
        JITTER_FIXED, depth=DEPTH,
    ),
    'Semantic FPN': Family(
        'ade20k/dat-pp-tiny_fpn_8xb4-40k_ade20k-512x512', MIOU, ITERATIONS,
        ADE_SMALL + RESIZE, ADE_FIXED + 'train_dataloader.dataset.pipeline.2.ratio_range=(1.0,1.0)',
        lr=1e-3,
    ),
    'UperNet': Family(
        'ade20k/dat-pp-tiny_upernet_8xb2-amp-160k_ade20k-512x512', MIOU, ITERATIONS,
        ADE_SMALL + RESIZE, ADE_FIXED + 'train_dataloader.dataset.pipeline.2.ratio_range=(1.0,1.0)',
        'model.decode_head.channels=128', lr=2e-3,
    ),
    'Mask2Former ADE20K': Family(
        'ade20k/dat-pp-tiny_mask2former_8xb2-160k_ade20k-512x512', MIOU, ITERATIONS,
        ADE_SMALL + SHORT_EDGE
        + LIGHT_MASK2FORMER.format(head='model.decode_head', points='model.decode_head.train_cfg'),
        ADE_FIXED + 'train_dataloader.dataset.pipeline.2.scales=[128]', depth=DEPTH,
    ),
}  # fmt: skip
