"""The table in docs/reuse.md: each form of naming a config or model, in a fresh process."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from fresh import script, upstream_tool

import dat_pp
from dat_pp.compat import startup

PAGE = Path(__file__).parents[2] / 'docs' / 'reuse.md'
WAYS = ('as it is', 'after `import dat_pp`', 'with the start-up hook')
ALWAYS, IMPORTED = ('yes', 'yes', 'yes'), ('no', 'yes', 'yes')
LIBRARIES = ('mmpretrain', 'mmdet', 'mmseg')
PRINT = {name: upstream_tool(name, 'misc/print_config.py') for name in LIBRARIES}

EXPRESSION = "_base_ = __import__('dat_pp').config('digits/mask-rcnn')\n"
LAZY = """
from mmengine.config import read_base
with read_base():
    from dat_pp.configs.digits.mask_rcnn import *
model.update(dict(rpn_head=dict(feat_channels=48)))
"""
OWN_TYPE = """
from mmengine.registry import MODELS
print(type(MODELS.build(dict(type='dat_pp.DAT', arch='dat-t++'))))
"""
HUB = """
from mmengine.hub import get_config, get_model
assert get_config('dat_pp::imagenet/dat-pp-tiny_32xb128_in1k.py').model.type == 'ImageClassifier'
for name in ('classification', 'mask-rcnn', 'upernet'):
    print(type(get_model(f'dat_pp::digits/{name}.py').backbone))
"""
DETECTOR = """
import numpy as np
from mmdet.apis import DetInferencer
inferencer = DetInferencer('digits-mask-rcnn', device='cpu', show_progress=False)
print(type(inferencer.model.backbone))
inferencer(np.zeros((64, 64, 3), np.uint8))
assert 'mask-rcnn_dat-pp-t_fpn_32xb2-amp-ms-crop-1x_coco' in inferencer.list_models('mmdet')
assert not [name for name in inferencer.list_models('mmdet') if 'ade20k' in name and 'dat' in name]
"""
SEGMENTOR = """
import numpy as np
from mmseg.apis import MMSegInferencer
inferencer = MMSegInferencer('digits-upernet', device='cpu', show_progress=False)
print(type(inferencer.model.backbone))
inferencer(np.zeros((64, 64, 3), np.uint8))
"""
CLASSIFIER = """
import numpy as np
import mmpretrain
model = mmpretrain.get_model('dat-pp-tiny_32xb128_in1k')
print(type(model.backbone))
assert 'dat-pp-tiny_32xb128_in1k' in mmpretrain.list_models('dat-pp')
assert 'pred_class' in mmpretrain.inference_model(model, np.zeros((64, 64, 3), np.uint8))
"""
# Row of the table -> where it works, the script, and its argument: a file's content, or a path.
FORMS = {
    "`_base_ = __import__('dat_pp').config('coco/...')`": (ALWAYS, PRINT['mmdet'], EXPRESSION),
    '`with read_base(): from dat_pp.configs.coco.... import *`': (
        ALWAYS, PRINT['mmpretrain'], LAZY,
    ),
    'path of one of our configs': (ALWAYS, PRINT['mmseg'], dat_pp.config('digits/upernet')),
    "`type='dat_pp.DAT'`": (ALWAYS, OWN_TYPE, ''),
    "`_base_ = 'dat_pp::coco/....py'`": (
        IMPORTED, PRINT['mmdet'], "_base_ = 'dat_pp::digits/mask-rcnn.py'\n",
    ),
    "`_base_ = 'mmseg::...'` beside `onedl-mmsegmentation`": (
        IMPORTED, PRINT['mmseg'],
        "_base_ = 'mmseg::_base_/models/upernet_r50.py'\nmodel = dict(backbone=dict(type='DAT'))\n",
    ),
    "`mmengine.hub.get_config('dat_pp::...')`, `get_model`": (IMPORTED, HUB, ''),
    "`DetInferencer('mask-rcnn_dat-pp-t_...')`": (IMPORTED, DETECTOR, ''),
    "`MMSegInferencer('dat-pp-tiny_upernet_...')`": (IMPORTED, SEGMENTOR, ''),
    '`mmpretrain.get_model`, `list_models`, `inference_model` by name': (IMPORTED, CLASSIFIER, ''),
}  # fmt: skip
# A column that follows from one before it is not tried again: what works as it is works anyhow.
CELLS = [
    pytest.param(form, way, id=f'{number}-{way}', marks=pytest.mark.slow)
    for number, (form, (works, _, _)) in enumerate(FORMS.items())
    for way in WAYS[: 1 if works == ALWAYS else 3]
]


def test_page() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith('|')]
    start = rows.index(f'| form | {" | ".join(WAYS)} |') + 2
    shown = rows[start : start + len(FORMS)]
    assert shown == [f'| {form} | {" | ".join(works)} |' for form, (works, *_) in FORMS.items()]


@pytest.mark.parametrize(('form', 'way'), CELLS)
def test_form(form: str, way: str, tmp_path: Path) -> None:
    works, code, argument = FORMS[form]
    if 'read_base' in form and not (Path(dat_pp.__file__).parent / 'configs').is_dir():
        pytest.skip('installed before the lazy configs were: pip install -e . writes them')
    if 'mmseg::' in form:
        with pytest.raises(PackageNotFoundError):  # else this form works as it is
            version('mmsegmentation')
    if isinstance(code, str):
        (tmp_path / 'script.py').write_text(code)
        code = tmp_path / 'script.py'
    if '\n' in argument:
        (tmp_path / 'mine.py').write_text(argument)
        argument = 'mine.py'
    before = 'pass'
    if way == WAYS[1]:
        before = 'import dat_pp'
    elif way == WAYS[2]:
        startup.install(str(tmp_path))
        before = f'import site; site.addsitedir({str(tmp_path)!r})'
    done = script(tmp_path, code, argument, before=before)
    if works[WAYS.index(way)] == 'yes':
        assert done.returncode == 0, done.stderr[-3000:]
        assert 'DAT' in done.stdout
    else:
        assert done.returncode != 0
