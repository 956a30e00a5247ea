"""Sphinx configuration: Markdown pages (MyST) and an API reference from docstrings.

Build with ``python -m sphinx -W -n docs OUT_DIR``.
"""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

import dat_pp

project = 'dat_pp'
author = 'The dat_pp contributors'
copyright = '2026, The dat_pp contributors'
version = release = dat_pp.__version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
    'sphinx_copybutton',
]
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = f'dat_pp {release}'
html_static_path = ['_static']
html_css_files = ['custom.css']

myst_enable_extensions = ['colon_fence']
myst_heading_anchors = 3
copybutton_exclude = '.linenos, .gp, .go'

autodoc_member_order = 'bysource'
autodoc_inherit_docstrings = False
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented'
autodoc_typehints_format = 'short'
napoleon_numpy_docstring = False

# Names of other projects are not linked: the build needs no network.
nitpick_ignore_regex = [
    (
        r'py:.*',
        r'(torch|mmengine|numpy|np|collections|pathlib|os|types|argparse|nn|optional)(\..*)?',
    ),
    (r'py:.*', r'(.*\.T|Tensor|Path|Config|Any|Callable|Sequence|Mapping|Iterable|Iterator)'),
]


def keep_colons(app: Sphinx, what: str, *args: object) -> None:
    """Keep napoleon from reading "Mixer D: ..." of an attribute as its type and description."""
    lines = args[-1]
    if what in ('attribute', 'data') and lines:
        lines.insert(0, '\\ ')


def rebase_links(app: Sphinx, path: Path, parent: str, content: list[str]) -> None:
    """Make relative links of an included page relative to the page that includes it.

    ``configs/*/README.md``, ``CHANGELOG.md`` and ``CONTRIBUTING.md`` are read on a forge too, so
    their links are relative to themselves. Links to other pages of the site become links to them.
    """
    here = (Path(app.srcdir) / app.env.docname).parent
    folder = (Path(app.srcdir) / path).resolve().parent

    def rebase(match: re.Match) -> str:
        target, _, anchor = match['target'].partition('#')
        file = (folder / target).resolve()
        page = app.config.included.get(os.path.relpath(file, Path(app.srcdir).parent))
        if page:
            file = Path(app.srcdir) / page
        return f']({os.path.relpath(file, here)}{"#" * bool(anchor)}{anchor})'

    content[0] = re.sub(r'\]\((?P<target>(?!\w+:|#)[^)\s]+)\)', rebase, content[0])


# Files outside of this folder that a page of the site includes.
INCLUDED = {
    'CHANGELOG.md': 'changelog.md',
    'CONTRIBUTING.md': 'contributing.md',
    'README.md': 'index.md',
    **{
        f'configs/{name}/README.md': f'model_zoo/{name}.md'
        for name in ('imagenet', 'coco', 'ade20k', 'digits')
    },
}


def setup(app: Sphinx) -> None:
    app.add_config_value('included', INCLUDED, 'env')
    app.connect('include-read', rebase_links)
    app.connect('autodoc-process-docstring', keep_colons, priority=400)  # before napoleon's 500
