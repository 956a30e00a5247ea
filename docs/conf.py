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


# Files outside of this folder, which people read on a forge too, and the pages that include them.
INCLUDED = {
    'CHANGELOG.md': 'changelog.md',
    'CONTRIBUTING.md': 'contributing.md',
    'README.md': 'index.md',
    **{
        f'configs/{name}/README.md': f'model_zoo/{name}.md'
        for name in ('imagenet', 'coco', 'ade20k', 'digits')
    },
}


def rebased(app: Sphinx, text: str, folder: Path, docname: str) -> str:
    """Rewrite the links of a text that lies in ``folder`` for the page ``docname`` of the site.

    Links are relative to the file that they stand in. A link to a file that a page of the site
    includes becomes one to that page.
    """
    source = Path(app.srcdir)

    def rebase(match: re.Match) -> str:
        target, hash_, anchor = match['target'].partition('#')
        file = (folder / target).resolve()
        page = INCLUDED.get(os.path.relpath(file, source.parent))
        file = source / page if page else file
        return f']({os.path.relpath(file, (source / docname).parent)}{hash_}{anchor})'

    return re.sub(r'\]\((?P<target>(?!\w+:|#)[^)\s]+\.\w+(#[^)\s]*)?)\)', rebase, text)


def rebase_page(app: Sphinx, docname: str, content: list[str]) -> None:
    content[0] = rebased(app, content[0], (Path(app.srcdir) / docname).parent, docname)


def rebase_included(app: Sphinx, path: Path, parent: str, content: list[str]) -> None:
    folder = (Path(app.srcdir) / path).resolve().parent
    content[0] = rebased(app, content[0], folder, app.env.docname)


def setup(app: Sphinx) -> None:
    app.connect('source-read', rebase_page)
    app.connect('include-read', rebase_included)
    app.connect('autodoc-process-docstring', keep_colons, priority=400)  # before napoleon's 500
