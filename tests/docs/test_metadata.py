"""Files about the project agree with the package."""

import re
from pathlib import Path

import yaml

import dat_pp

ROOT = Path(__file__).resolve().parents[2]


def test_citation():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == dat_pp.__version__
    papers = {paper['url'] for paper in citation['references']}
    assert papers == {'https://arxiv.org/abs/2201.00520', 'https://arxiv.org/abs/2309.01430'}


def test_changelog_has_this_version():
    versions = re.findall(r'^## (\S+)', (ROOT / 'CHANGELOG.md').read_text(), re.M)
    assert versions[0] == dat_pp.__version__


def test_workflow_runs_what_ci_runs():
    workflow = yaml.safe_load((ROOT / '.github' / 'workflows' / 'ci.yml').read_text())
    commands = [step['run'] for step in workflow['jobs']['test']['steps'] if 'run' in step]
    assert commands == ['bash .ci/run']


def test_environment_variables_are_documented():
    sources = [*ROOT.glob('projects/**/*.py'), *ROOT.glob('demo/**/*.py')]
    used = {name for file in sources for name in re.findall(r'\bDAT_PP_[A-Z]+', file.read_text())}
    page = (ROOT / 'docs' / 'install.md').read_text()
    assert used
    assert used <= set(re.findall(r'`(DAT_PP_[A-Z]+)`', page))
