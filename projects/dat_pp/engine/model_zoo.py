"""Write the tables of configs/{imagenet,coco,ade20k}/README.md and the entries of metafile.yml.

Collections, results and links to published weights are written into metafile.yml by hand. The rest
of it is written here: an entry per config, its schedule, and its measured parameters and FLOPs (see
tools/analysis_tools/get_flops.py). The tables, between comments in README.md, are made of
metafile.yml and the configs.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from mmengine.config import Config

from .config import read_config
from .errors import UserError
from .flops import default_shape, measure

ROOT = Path(__file__).resolve().parents[3]

Numbers = dict[str, int]
"""``FLOPs`` and ``Parameters`` of a model."""
Entry = dict
"""A model in metafile.yml."""
Cell = Callable[[Entry, Config], str]
"""Writes a cell of the table of models."""

HEADER = """\
# Collections, Results, Weights (share pages, for a browser) and Published are written by hand, the
# rest by tools/misc/update_model_zoo.py.
"""
BY_HAND = ('Results', 'Weights', 'Published')
DATASETS = {'imagenet': 'ImageNet-1k', 'coco': 'COCO', 'ade20k': 'ADE20K'}
METHODS = {
    'retinanet': 'RetinaNet',
    'mask-rcnn': 'Mask R-CNN',
    'cascade-mask-rcnn': 'Cascade Mask R-CNN',
    'dino-5scale': 'DINO, 5 scales',
    'mask2former': 'Mask2Former',
    'fpn': 'Semantic FPN',
    'upernet': 'UperNet',
}
HOSTS = {
    '1drv.ms': 'OneDrive',
    'cloud.tsinghua.edu.cn': 'Tsinghua Cloud',
    'drive.google.com': 'Google Drive',
}


def backbone_title(cfg: Config) -> str:
    """The backbone as the papers write it: DAT-T++, DAT-B."""
    arch = cfg.model.backbone.arch
    return (arch if isinstance(arch, str) else arch.base).upper()


def classifier_title(entry: Entry, cfg: Config) -> str:
    """Backbone, size and, of an ablation, its variant: DAT-T++ (overlapped, lpu)."""
    model, _, data = entry['Name'].split('_')
    if data.endswith('-384px'):
        return f'{backbone_title(cfg)} at 384 x 384'
    variant = model.partition('-pp-tiny-')[2]
    return backbone_title(cfg) + (f' ({variant.replace("-", ", ")})' if variant else '')


def method_title(entry: Entry) -> str:
    return next(METHODS[part] for part in entry['Name'].split('_') if part in METHODS)


def _metric(name: str) -> Cell:
    def cell(entry: Entry, _: Config) -> str:
        found = [r['Metrics'][name] for r in entry.get('Results', ()) if name in r['Metrics']]
        return f'{round(found[0], 2)}' if found else '-'

    return cell


def _flops(digits: int) -> Cell:
    return lambda entry, _: f'{entry["Metadata"]["FLOPs"] / 1e9:.{digits}f}'


def _params(entry: Entry, _: Config) -> str:
    return f'{entry["Metadata"]["Parameters"] / 1e6:.2f}'


def _drop_path(_: Entry, cfg: Config) -> str:
    return f'{cfg.model.backbone.get("drop_path_rate", 0):g}'


COLUMNS: dict[str, dict[str, Cell]] = {
    'imagenet': {
        'Model': classifier_title,
        'Params (M)': _params,
        'FLOPs (G)': _flops(2),
        'Drop path': _drop_path,
        'Epochs': lambda _, cfg: f'{cfg.train_cfg.max_epochs}',
        'Top-1': _metric('Top 1 Accuracy'),
        'Top-5': _metric('Top 5 Accuracy'),
    },
    'coco': {
        'Model': lambda entry, cfg: f'{method_title(entry)}, {backbone_title(cfg)}',
        'Params (M)': _params,
        'FLOPs (G)': _flops(0),
        'Lr schd': lambda entry, _: entry['Name'].split('_')[-2].split('-')[-1],
        'lr': lambda _, cfg: f'{cfg.optim_wrapper.optimizer.lr:g}',
        'Drop path': _drop_path,
        'box AP': _metric('box AP'),
        'mask AP': _metric('mask AP'),
    },
    'ade20k': {
        'Head': lambda entry, _: method_title(entry),
        'Backbone': lambda _, cfg: backbone_title(cfg),
        'Crop': lambda _, cfg: '{} x {}'.format(*cfg.crop_size),
        'Lr schd': lambda _, cfg: f'{cfg.train_cfg.max_iters // 1000}k',
        'Params (M)': _params,
        'FLOPs (G)': _flops(0),
        'Drop path': _drop_path,
        'mIoU': _metric('mIoU'),
        'mIoU(ms+flip)': _metric('mIoU(ms+flip)'),
    },
}


def read_configs(folder: Path) -> dict[str, Config]:
    """The configs in a folder by name."""
    paths = sorted(folder.glob('*.py'))
    return {p.stem: read_config(argparse.Namespace(config=str(p), cfg_options=None)) for p in paths}


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
    """Return the text of metafile.yml with an entry per config and new numbers.

    Raises:
        UserError: An entry's config does not exist.
    """
    meta = yaml.safe_load(text)
    entries = {entry['Name']: entry for entry in meta.get('Models') or []}
    for name in entries:
        if name not in configs:
            raise UserError(f'configs/{folder}/metafile.yml: no such config: {name}.py')
    meta['Models'] = []
    for name in [*entries, *(name for name in configs if name not in entries)]:
        old, loop = entries.get(name, {}), configs[name].train_cfg
        epochs = 'max_epochs' in loop
        length = dict(Epochs=loop.max_epochs) if epochs else dict(Iterations=loop.max_iters)
        entry = {
            'Name': name,
            'In Collection': old.get('In Collection', meta['Collections'][0]['Name']),
            'Config': f'configs/{folder}/{name}.py',
            'Metadata': {'Training Data': DATASETS[folder], **length, **numbers[name]},
        }
        meta['Models'].append(entry | {key: old[key] for key in BY_HAND if key in old})
    return HEADER + yaml.dump(meta, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Indents the items of a list."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def update_readme(text: str, metafile: str, folder: str, configs: dict[str, Config]) -> str:
    """Return the text of README.md with new tables.

    Raises:
        UserError: A table's place is not marked.
    """
    entries = yaml.safe_load(metafile)['Models']
    tables = {'models': models_table(entries, folder, configs), 'weights': weights_table(entries)}
    for name, table in tables.items():
        begin, end = f'<!-- {name} -->', f'<!-- /{name} -->'
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise UserError(f'configs/{folder}/README.md: no lines {begin} and {end}')
        text = f'{before}{begin}\n\n{table}\n\n{end}{after}'
    return text


def models_table(entries: Sequence[Entry], folder: str, configs: dict[str, Config]) -> str:
    """The Markdown table of a folder's models."""
    columns = {**COLUMNS[folder], 'Config': lambda entry, _: f'[config]({entry["Name"]}.py)'}
    rows = [[cell(e, configs[e['Name']]) for cell in columns.values()] for e in entries]
    align = [':-' if name in ('Model', 'Head') else ':-:' for name in columns]
    return _markdown([list(columns), align, *rows])


def weights_table(entries: Sequence[Entry]) -> str:
    """The Markdown table of the published weights: config, published config, share pages."""
    rows = [['Config', 'Published as', 'Weights'], [':-', ':-', ':-']]
    for entry in entries:
        if 'Weights' in entry:
            published = entry['Published']
            repository = published['Repository'].rpartition('/')[2]
            source = f'{repository}, `{published["Config"]}`'
            source += f' (tag `{published["Tag"]}`)' if 'Tag' in published else ''
            pages = entry['Weights'], published['Mirror']
            links = [f'[{HOSTS[urlsplit(page).netloc]}]({page})' for page in pages]
            rows.append([f'`{entry["Name"]}`', source, ', '.join(links)])
    return _markdown(rows)


def _markdown(rows: Iterable[Iterable[str]]) -> str:
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def updated_files(root: Path) -> dict[Path, str]:
    """What the metafiles and pages under ``root`` should hold."""
    files = {}
    for name in DATASETS:
        folder = root / 'configs' / name
        configs = read_configs(folder)
        numbers = dict(zip(configs, measure_all(configs.values()), strict=True))
        metafile, readme = folder / 'metafile.yml', folder / 'README.md'
        files[metafile] = update_metafile(_read(metafile), name, configs, numbers)
        files[readme] = update_readme(_read(readme), files[metafile], name, configs)
    return files


def _read(path: Path) -> str:
    return path.read_text(encoding='utf-8')


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='write nothing, list the files that are out of date and exit with 1 if there are any',
    )
    args = parser.parse_args(argv)
    stale = {path: text for path, text in updated_files(ROOT).items() if _read(path) != text}
    for path, text in stale.items():
        if not args.check:
            path.write_text(text, encoding='utf-8')
        print(f'{"stale" if args.check else "written"}: {path.relative_to(ROOT)}')
    return 1 if stale and args.check else 0
