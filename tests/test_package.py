"What pip installs, what it imports, and that the README is the index."
import os, re, subprocess, sys, zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from refresh import NBS, TOP, readme

import dlmech


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
    code = ('import sys\n'
            'for name in ("ipywidgets", "papermill", "nbdev", "fastcore", "execnb", "IPython", '
            '"jupyterlab", "nbformat"): sys.modules[name] = None\n'
            'from dlmech import run, stats, data, arch, model, probe, figures, filter, network')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=TOP)
    assert done.returncode == 0, done.stderr


def test_dlmech_is_imported_without_torch():
    code = 'import sys, dlmech; assert "torch" not in sys.modules and dlmech.__version__'
    subprocess.run([sys.executable, '-c', code], check=True, cwd=TOP)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp('wheel')
    src = out/'src'
    import shutil
    shutil.copytree(TOP, src, ignore=shutil.ignore_patterns('.git', 'runs', '*.egg-info', 'build', '.venv',
                                                            '__pycache__'))
    done = subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', out, src],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(out.glob('*.whl'))


def test_the_wheel_holds_modules_notebooks_and_networks(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for p in (TOP/'dlmech').glob('*.py'): assert f'dlmech/{p.name}' in names
    for p in NBS.glob('*.ipynb'): assert f'dlmech/notebooks/{p.name}' in names
    for p in (TOP/'dlmech'/'zoo').glob('*'): assert f'dlmech/zoo/{p.name}' in names
    assert wheel.stat().st_size < 40e6


def test_notebooks_can_be_copied_out_of_the_installed_wheel_and_run(wheel, tmp_path):
    "As a user without a checkout would: only the wheel's own files on the path."
    site = tmp_path/'site'
    zipfile.ZipFile(wheel).extractall(site)
    env = {**os.environ, 'PYTHONPATH': str(site), 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg',
           'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}
    cli = [sys.executable, '-c',
           'import sys, dlmech; assert sys.argv[1] in dlmech.__file__, dlmech.__file__; from dlmech.cli '
           'import main; sys.exit(main(sys.argv[2:]))', str(site)]
    done = subprocess.run([*cli, 'notebooks', tmp_path/'nbs'], cwd=tmp_path, env=env, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path/'nbs').iterdir()} == {p.name for p in NBS.glob('*.ipynb')}
    again = subprocess.run([*cli, 'notebooks', tmp_path/'nbs'], cwd=tmp_path, env=env, capture_output=True,
                           text=True)
    assert again.returncode == 2
    assert 'already holds' in again.stderr
    small = ['-p', 'arch', 'vgg6', '-p', 'd', '2', '-p', 'epochs', '1', '--no-progress-bar',
             '--no-request-save-on-cell-execute']
    # from the notebooks' own folder, as JupyterLab would: runs lie beside it, as they do when it is called
    # from above
    done = subprocess.run(['papermill', '03_filter.ipynb', tmp_path/'out.ipynb', *small], cwd=tmp_path/'nbs',
                          env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in (tmp_path/'runs').iterdir()] == ['vgg6-digits-d2-fast1-seed0']
    assert not (tmp_path/'nbs'/'runs').exists()
