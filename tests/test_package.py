"What pip installs, what it imports, and that the README is the index."
import re, shlex, shutil, subprocess, sys, zipfile
from configparser import ConfigParser

import pytest, typer, yaml

import dlmech
import dlmech.arch as arch
from dlmech.cli import app
from helpers import ENV, NBS, run, TOP
from refresh import readme


def settings():
    ini = ConfigParser(delimiters=['='])
    ini.read(TOP/'settings.ini')
    return ini['DEFAULT']


def test_the_readme_is_made_from_the_index():
    assert (TOP/'README.md').read_text() == readme(), 'run python tests/refresh.py'


def test_the_readme_names_only_what_there_is():
    text = (TOP/'README.md').read_text()
    for name in re.findall(r'^\| `(\w+)` \|', text, re.M): assert (NBS/f'{name}.ipynb').exists(), name
    for picture in re.findall(r'!\[.*?\]\((.*?)\)', text): assert (TOP/picture).exists(), picture


def test_the_version_is_one():
    assert dlmech.__version__ == settings()['version']
    assert f"## {dlmech.__version__}" in (TOP/'CHANGELOG.md').read_text()
    assert f"\nversion: {dlmech.__version__}\n" in (TOP/'CITATION.cff').read_text()


def blocks(language: str) -> list[str]:
    "The code of a language in README.md, CONTRIBUTING.md and the how-to pages."
    pages = [TOP/'README.md', TOP/'CONTRIBUTING.md', *sorted((TOP/'docs'/'howto').glob('*.md'))]
    return [b for p in pages for b in re.findall(rf'^```{language}\n(.*?)^```', p.read_text(), re.M | re.S)]


def test_the_commands_that_are_told_exist():
    "Each command of `dlmech`, with its options; each script and notebook that a command names."
    commands = typer.main.get_command(app).commands
    lines = [line.split('#')[0].strip() for b in blocks('bash') for line in b.splitlines()]
    told = [shlex.split(line) for line in lines if line.startswith('dlmech ')]
    assert len(told) > 6
    for _, name, *words in told:
        known = {o for p in commands[name].params for o in p.opts}
        assert {w for w in words if w.startswith('--')} <= known, (name, words)
    named = {w for line in lines for w in re.findall(r'[\w/-]+\.(?:py|ipynb)', line)}
    there = {w for w in named if not w.startswith('out') and w != 'measure.py'}  # written; the reader's own
    assert len(there) > 2
    assert {w for w in there if not (TOP/w).exists()} == set()


def test_what_is_told_to_be_installed_can_be():
    "The extras of every `pip install`, in the pages and in .ci/run."
    texts = [*blocks('bash'), (TOP/'.ci'/'run').read_text(), (NBS/'tutorial.ipynb').read_text()]
    extras = {e for t in texts for part in re.findall(r"'\.\[([\w,]+)\]'", t) for e in part.split(',')}
    assert extras >= {'dev', 'docs', 'explore', 'ranks'}
    assert {e for e in extras if f'{e}_requirements' not in settings()} == set()


def test_every_check_is_that_of_ci_run():
    "The workflow runs it; what pre-commit asks is part of it, word for word."
    checks = (TOP/'.ci'/'run').read_text()
    workflow = yaml.safe_load((TOP/'.github'/'workflows'/'ci.yml').read_text())
    steps = [s['run'] for job in workflow['jobs'].values() for s in job['steps'] if 'run' in s]
    assert steps == ['.ci/run']
    hooks = yaml.safe_load((TOP/'.pre-commit-config.yaml').read_text())['repos'][0]['hooks']
    assert len(hooks) == 3
    assert [h['entry'] for h in hooks if h['entry'] not in checks] == []


def test_the_issue_template_asks_for_what_can_be_said():
    form = yaml.safe_load((TOP/'.github'/'ISSUE_TEMPLATE'/'bug.yml').read_text())
    asked = next(a['description'] for f in form['body'] if (a := f['attributes'])['label'] == 'Versions')
    assert run(*shlex.split(asked.replace('python', sys.executable, 1))).stdout.startswith('{')


def test_requirements_of_the_package_have_lower_bounds_only():
    for r in settings()['requirements'].split(): assert re.fullmatch(r'[\w-]+>=[\d.]+', r), r


def test_the_phases_run_on_a_bare_machine():
    "Imports with everything blocked that a bare GPU machine may lack."
    code = '''
import sys
missing = "ipywidgets papermill nbdev fastcore execnb IPython jupyterlab nbformat"
for name in missing.split(): sys.modules[name] = None
from dlmech import run, stats, figures, datasets, trunk, arch, model, probe, filter, measurement
'''
    done = run(sys.executable, '-c', code, cwd=TOP)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp('wheel')
    made = shutil.ignore_patterns('.git', 'runs', '*.egg-info', 'build', '.venv', '__pycache__')
    shutil.copytree(TOP, out/'src', ignore=made)
    done = subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', out, out/'src'],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(out.glob('*.whl'))


def test_the_wheel_holds_modules_notebooks_and_networks(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = [p.relative_to(TOP).as_posix() for p in (TOP/'dlmech').rglob('*.py')]
    assert {'dlmech/run.py', 'dlmech/pruning/afcc.py', 'dlmech/look/__init__.py'} <= set(modules) <= names
    assert 'dlmech/py.typed' in names
    for p in NBS.glob('*.ipynb'): assert f'dlmech/notebooks/{p.name}' in names
    finished = [p.relative_to(TOP/'dlmech') for p in (TOP/'dlmech'/'zoo'/'finished').iterdir()]
    assert finished
    for folder in ('zoo', 'results', 'look/templates', *finished):
        for p in (TOP/'dlmech'/folder).glob('*.*'): assert f'dlmech/{folder}/{p.name}' in names
    assert not [n for n in names if n.startswith('dlmech/zoo/large')]  # a checkout's own
    assert {n.split('/')[0].split('-')[0] for n in names} == {'dlmech'}  # neither tests nor experiments
    assert wheel.stat().st_size < 40e6


def test_notebooks_can_be_copied_out_of_the_installed_wheel_and_run(wheel, tmp_path):
    "As a user without a checkout would: only the wheel's own files on the path."
    site = tmp_path/'site'
    zipfile.ZipFile(wheel).extractall(site)
    env = ENV | {'PYTHONPATH': str(site)}
    code = '''
import sys, dlmech
assert sys.argv[1] in dlmech.__file__, dlmech.__file__
from dlmech.cli import main
sys.exit(main(sys.argv[2:]))
'''
    cli = [sys.executable, '-c', code, str(site)]
    given = dict(env=env, capture_output=True, text=True)
    done = subprocess.run([*cli, 'notebooks', tmp_path/'nbs'], cwd=tmp_path, **given)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path/'nbs').iterdir()} == {p.name for p in NBS.glob('*.ipynb')}
    again = subprocess.run([*cli, 'notebooks', tmp_path/'nbs'], cwd=tmp_path, **given)
    assert again.returncode == 2
    assert 'already holds' in again.stderr
    small = ['-p', 'arch', 'vgg6', '-p', 'd', '2', '-p', 'epochs', '1', '--no-progress-bar',
             '--no-request-save-on-cell-execute']
    # from the notebooks' own folder, as JupyterLab would: runs lie beside it, as they do when it is called
    # from above
    done = subprocess.run(['papermill', '03_filter.ipynb', tmp_path/'out.ipynb', *small], cwd=tmp_path/'nbs',
                          timeout=600, **given)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in (tmp_path/'runs').iterdir()] == ['vgg6-digits-d2-fast1-seed0']
    assert not (tmp_path/'nbs'/'runs').exists()


def test_contributings_lines_run(tmp_path, monkeypatch):
    "The architecture of CONTRIBUTING.md is one, and it is measured."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(arch.PLANS, 'vgg7', '')  # gone again at the end
    text = (TOP/'CONTRIBUTING.md').read_text()
    block = next(b for b in text.split('```python\n')[1:] if 'PLANS' in b).split('```')[0]
    found = {}
    block = block.replace('d=8', "d=2, labels='0,1'")  # a minute less
    exec(block.replace('dlmech.measure_run(run)', 'm = dlmech.measure_run(run)'), found)
    assert len(found['m'].layers) == 6
