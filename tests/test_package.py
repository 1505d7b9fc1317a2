"What pip installs, what it imports, and that the README is the index."
import re, shutil, subprocess, sys, zipfile
from configparser import ConfigParser

import pytest

import dlmech
import dlmech.arch as arch
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
    for folder in ('zoo', 'results', 'look/templates'):
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
