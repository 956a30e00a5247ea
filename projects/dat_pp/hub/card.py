"""The model card, README.md of a folder in the hub format (see :mod:`dat_pp.hub`)."""

from collections.abc import Mapping
from typing import Any

PAPERS = {
    'dat': ('Vision Transformer with Deformable Attention', 'CVPR', 2022, '2201.00520'),
    'dat++': (
        'DAT++: Spatially Dynamic Vision Transformer with Deformable Attention',
        'arXiv preprint arXiv:2309.01430',
        2023,
        '2309.01430',
    ),
}
"""Title, place, year and arXiv number, by the setting ``coordinates`` of the architecture."""

TEMPLATE = """\
---
{front}tags: [dat_pp, timm, safetensors, vision-transformer, deformable-attention]
---

# {name}

{what} with {millions:.1f} M parameters, saved by dat_pp {version}.
Paper: [{title}](https://arxiv.org/abs/{arxiv}). {source}

## Use

```python
import dat_pp

model = dat_pp.{model}.from_pretrained('PATH_OR_ID')
```

PATH_OR_ID is this folder, or the id of its repository on the hub. {preprocessing}

## Results

{results}

## License

{license} The published weights ([LeapLabTHU/DAT](https://github.com/LeapLabTHU/DAT)) and the code
of dat_pp are Apache-2.0.

## Citation

```bibtex
@article{{xia{year}dat,
  title={{{title}}},
  author={{Xia, Zhuofan and Pan, Xuran and Song, Shiji and Li, Li Erran and Huang, Gao}},
  journal={{{place}}},
  year={{{year}}}
}}
```
"""


def model_card(
    config: Mapping[str, Any],
    num_parameters: int,
    *,
    published: tuple[str, float] | None = None,
    metrics: Mapping[str, Any] | None = None,
    license: str | None = None,
    source: str | None = None,
) -> str:
    """Write a model card: what the model is, its use, results, license and citation.

    Only ``metrics`` are called results of these weights. The paper's result is given beside them as
    that of the architecture: nothing tells whether the weights are the published ones.

    Args:
        config: Content of config.json.
        num_parameters: Number of parameters.
        published: Name and ImageNet-1K top-1 accuracy in percent of the published model with this
            architecture and input size.
        metrics: Results measured with these weights, by name.
        license: License of the weights, an identifier of the hub.
        source: Where the weights come from.
    """
    own, classes = config['dat_pp'], config['num_classes']
    title, place, year, arxiv = PAPERS[own['arch']['coordinates']]
    family = own['arch']['coordinates'].upper()
    front = dict(license=license) if license else {}
    task = 'image-classification' if classes else 'image-feature-extraction'
    front |= dict(library_name='dat_pp', pipeline_tag=task)
    rows = [f'| {name} | {value} | these weights |' for name, value in (metrics or {}).items()]
    if published:
        rows.append(
            f'| ImageNet-1K top-1 | {published[1]} | the paper, for {published[0].upper()} |'
        )
    header = ['| metric | value | source |', '|---|---|---|']
    return TEMPLATE.format(
        front=''.join(f'{key}: {value}\n' for key, value in front.items()),
        name=published[0].upper() if published else family,
        what=f'An image classifier of {classes} classes' if classes else 'A backbone',
        millions=num_parameters / 1e6,
        version=own['version'],
        title=title,
        place=place,
        year=year,
        arxiv=arxiv,
        source=source or '',
        model=own['model'],
        preprocessing=_preprocessing(config['pretrained_cfg']),
        results='\n'.join(header + rows) if rows else 'None were given.',
        license=f'These weights: {license}.' if license else 'Not stated for these weights.',
    )


def _preprocessing(cfg: Mapping[str, Any]) -> str:
    """A sentence about the input; none for a backbone, whose task decides on it."""
    if 'input_size' not in cfg:
        return ''
    channels, height, width = cfg['input_size']
    sentence = f'Input: {channels} channels, {height} x {width}'
    if 'mean' in cfg and 'std' in cfg:
        mean, std = (', '.join(f'{value:g}' for value in cfg[key]) for key in ('mean', 'std'))
        sentence += f', values from 0 to 1, normalized by mean {mean} and standard deviation {std}'
    return sentence + '; `config.json` has the rest of the preprocessing.'
