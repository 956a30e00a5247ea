"""Write the model tables of configs/{imagenet,coco,ade20k}/README.md and the numbers behind them.

    python tools/misc/update_model_zoo.py [--check]

Collections and results stand in each folder's metafile.yml and are written by hand. Everything else
there is written here: an entry for each config, its schedule, its measured parameters and FLOPs
(see tools/analysis_tools/get_flops.py). The tables, between two comments in each README.md, come
from metafile.yml and the configs.

--check writes nothing; it prints one line for each file that is not what it should be, and ends
with 1 if there is one.
"""

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from mmengine.config import Config

from .config import read_config
from .errors import UserError
from .flops import default_shape, measure

ROOT = Path(__file__).resolve().parents[3]

Numbers = dict[str, int]
"""``FLOPs`` and ``Parameters`` of a model."""

HEADER = '# Collections and Results are by hand; tools/misc/update_model_zoo.py writes the rest.\n'
BEGIN, END = '<!-- models -->', '<!-- /models -->'
DATA = {'imagenet': 'ImageNet-1k', 'coco': 'COCO', 'ade20k': 'ADE20K'}
COLUMNS = {
    'imagenet': ('Model', 'Params (M)', 'FLOPs (G)', 'Drop path', 'Epochs', 'Top-1', 'Top-5'),
    'coco': (
        *('Model', 'Params (M)', 'FLOPs (G)', 'Lr schd', 'lr', 'Drop path', 'box AP', 'mask AP'),
    ),
    'ade20k': (
        *('Head', 'Backbone', 'Crop', 'Lr schd', 'Params (M)', 'FLOPs (G)', 'Drop path'),
        *('mIoU', 'mIoU(ms+flip)'),
    ),
}
METRICS = {'Top-1': 'Top 1 Accuracy', 'Top-5': 'Top 5 Accuracy'}
METHODS = {
    'retinanet': 'RetinaNet',
    'mask-rcnn': 'Mask R-CNN',
    'cascade-mask-rcnn': 'Cascade Mask R-CNN',
    'dino-5scale': 'DINO, 5 scales',
    'mask2former': 'Mask2Former',
    'fpn': 'Semantic FPN',
    'upernet': 'UperNet',
}


def read_configs(folder: Path) -> dict[str, Config]:
    """The configs of a folder by name, without the ending."""
    namespace = argparse.Namespace(cfg_options=None)
    configs = {}
    for path in sorted(folder.glob('*.py')):
        namespace.config = str(path)
        configs[path.stem] = read_config(namespace)
    return configs


def measure_all(configs: Iterable[Config]) -> list[Numbers]:
    """Measure each config; models that differ only in how they are trained are measured once."""
    found: dict[str, Numbers] = {}
    numbers = []
    for cfg in configs:
        model = cfg.model.to_dict()
        for setting in ('drop_path_rate', 'with_cp', 'init_cfg'):
            model['backbone'].pop(setting, None)
        key = f'{model} at {default_shape(cfg)}'
        if key not in found:
            complexity = measure(cfg)
            found[key] = dict(FLOPs=complexity.total_flops, Parameters=complexity.total_params)
        numbers.append(found[key])
    return numbers


def update_metafile(
    text: str, folder: str, configs: dict[str, Config], numbers: dict[str, Numbers]
) -> str:
    """The text of a metafile.yml with an entry for each config and new numbers.

    Raises:
        UserError: It has an entry, and perhaps results, for a config that is not there.
    """
    meta = yaml.safe_load(text)
    entries = {entry['Name']: entry for entry in meta.get('Models') or []}
    for name in entries:
        if name not in configs:
            raise UserError(f'configs/{folder}/metafile.yml: no such config: {name}.py')
    models = []
    for name in [*entries, *(name for name in configs if name not in entries)]:
        entry = entries.get(name, {})
        loop = configs[name].train_cfg
        length = dict(Epochs=loop.max_epochs) if 'max_epochs' in loop else {}
        length = length or dict(Iterations=loop.max_iters)
        model = {
            'Name': name,
            'In Collection': entry.get('In Collection', meta['Collections'][0]['Name']),
            'Config': f'configs/{folder}/{name}.py',
            'Metadata': {'Training Data': DATA[folder], **length, **numbers[name]},
        }
        if entry.get('Results'):
            model['Results'] = entry['Results']
        models.append(model)
    meta['Models'] = models
    return HEADER + yaml.dump(meta, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Indents the items of a list."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def update_readme(text: str, metafile: str, folder: str, configs: dict[str, Config]) -> str:
    """The text of a README.md with a new table.

    Raises:
        UserError: It has no place for the table.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f'configs/{folder}/README.md: no lines {BEGIN} and {END}')
    table = render_table(yaml.safe_load(metafile)['Models'], folder, configs)
    return f'{before}{begin}\n\n{table}\n\n{end}{after}'


def render_table(models: list[dict], folder: str, configs: dict[str, Config]) -> str:
    """The Markdown table of a folder's models, in their order."""
    columns = (*COLUMNS[folder], 'Config')
    lines = [columns, [':-' if column in ('Model', 'Head') else ':-:' for column in columns]]
    for model in models:
        cells = describe(model['Name'], folder, configs[model['Name']])
        cells['Params (M)'] = f'{model["Metadata"]["Parameters"] / 1e6:.2f}'
        cells['FLOPs (G)'] = (
            f'{model["Metadata"]["FLOPs"] / 1e9:.{2 if folder == "imagenet" else 0}f}'
        )
        cells['Config'] = f'[config]({model["Name"]}.py)'
        results = {}
        for result in model.get('Results', []):
            results.update(result['Metrics'])
        for column in columns:
            if column not in cells:
                value = results.get(METRICS.get(column, column))
                cells[column] = '-' if value is None else f'{round(value, 2)}'
        lines.append([cells[column] for column in columns])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def describe(name: str, folder: str, cfg: Config) -> dict[str, str]:
    """The cells of a row that the config and its name say."""
    first, second = name.split('_')[:2]
    backbone = backbone_title(first if folder != 'coco' else second)
    cells = {'Drop path': f'{cfg.model.backbone.get("drop_path_rate", 0):g}'}
    if folder == 'imagenet':
        title = backbone + (' at 384 x 384' if name.endswith('-384px') else '')
        return {**cells, 'Model': title, 'Epochs': str(cfg.train_cfg.max_epochs)}
    if folder == 'coco':
        return {
            **cells,
            'Model': f'{METHODS[first]}, {backbone}',
            'Lr schd': name.removesuffix('_coco').rpartition('-')[2].rpartition('_')[2],
            'lr': f'{cfg.optim_wrapper.optimizer.lr:g}',
        }
    height, width = cfg.crop_size
    return {
        **cells,
        'Head': METHODS[second],
        'Backbone': backbone,
        'Crop': f'{height} x {width}',
        'Lr schd': f'{cfg.train_cfg.max_iters // 1000}k',
    }


def backbone_title(name: str) -> str:
    """``dat-pp-tiny-overlapped-lpu`` or ``dat-pp-t`` as people write it: DAT-T++ ..."""
    family, size, variant = re.fullmatch(r'dat-(pp-)?([a-z]+)(?:-(.+))?', name).groups()
    title = f'DAT-{size[0].upper()}{"++" if family else ""}'
    return f'{title} ({variant.replace("-", ", ")})' if variant else title


def updated_files(root: Path) -> dict[Path, str]:
    """What the metafiles and pages under ``root`` should hold."""
    files = {}
    for name in DATA:
        folder = root / 'configs' / name
        configs = read_configs(folder)
        numbers = dict(zip(configs, measure_all(configs.values()), strict=True))
        metafile, readme = folder / 'metafile.yml', folder / 'README.md'
        files[metafile] = update_metafile(metafile.read_text(), name, configs, numbers)
        files[readme] = update_readme(readme.read_text(), files[metafile], name, configs)
    return files


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--check', action='store_true', help='write nothing; end with 1 if stale')
    args = parser.parse_args(argv)
    stale = [(p, text) for p, text in updated_files(ROOT).items() if p.read_text() != text]
    for path, text in stale:
        if not args.check:
            path.write_text(text)
        print(f'{"stale" if args.check else "written"}: {path.relative_to(ROOT)}')
    return 1 if stale and args.check else 0
