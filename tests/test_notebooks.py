"""Every notebook as it is committed, and every phase notebook as papermill runs it; nbdev_test runs what
stands in them."""
import json, os, re, subprocess, sys
from pathlib import Path

import pandas as pd, pytest

TOP = Path(__file__).resolve().parent.parent
NBS = TOP/'nbs'
ALL = sorted(p.stem for p in NBS.glob('*.ipynb'))
PHASES = ['01_model', '02_probe', '03_filter']
PARAMETERS = [*PHASES, '06_explore', '04_dilution'] # notebooks with a parameter cell
NAMES = 'arch dataset layer labels d seed recipe epochs threshold images runs root device size plan weights'.split()
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg',
       'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}


def source(name): return json.loads((NBS/f'{name}.ipynb').read_text())


@pytest.mark.parametrize('name', ALL)
def test_it_is_committed_with_its_outputs_and_no_error(name):
    cells = [c for c in source(name)['cells'] if c['cell_type'] == 'code']
    outputs = [o for c in cells for o in c['outputs']]
    assert not [o for o in outputs if o['output_type'] == 'error']
    silent = name == 'index'
    assert silent or any(o['output_type'] in ('execute_result', 'display_data', 'stream') for o in outputs)


@pytest.mark.parametrize('name', PARAMETERS)
def test_it_has_exactly_one_parameter_cell_with_the_names_of_all_phases(name, tmp_path):
    copy = tmp_path/f'{name}.ipynb'
    copy.write_bytes((NBS/f'{name}.ipynb').read_bytes())
    (tmp_path/'settings.ini').write_bytes((TOP/'settings.ini').read_bytes())
    subprocess.run(['nbdev_clean', '--fname', copy], cwd=tmp_path, env=ENV, check=True, capture_output=True)
    cells = [c for c in json.loads(copy.read_text())['cells']
             if 'parameters' in c['metadata'].get('tags', [])]
    assert len(cells) == 1
    lines = ''.join(cells[0]['source']).splitlines()
    assert [re.match(r'(\w+): \w+ = .+  # .+', line)[1]
            for line in lines] == NAMES  # papermill's help reads this form


def papermill(name, out, *parameters, cwd=TOP, timeout=300):
    """The notebook of that name (or at that path) by papermill, written once it is done: saving it after
    every cell takes a quarter of the time."""
    args = [a for p in parameters for a in ('-p', *p.split('=', 1))]
    args += ['--no-progress-bar', '--no-request-save-on-cell-execute']
    return subprocess.run(['papermill', NBS/f'{name}.ipynb', out, *args], cwd=cwd, env=ENV,
                          capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope='module')
def runs(tmp_path_factory): return tmp_path_factory.mktemp('runs')


@pytest.mark.parametrize('name, file', list(zip(PARAMETERS, ['train.csv', 'probe.csv',
                                                             'train-threshold0.4/layers.csv',
                                                             'train-threshold0.4/layers.csv',
                                                             'dilution.csv'])))
def test_papermill_runs_it_with_other_parameters(name, file, runs, tmp_path):
    done = papermill(name, tmp_path/'out.ipynb', 'arch=vgg6', 'd=4', 'labels=0,3,7', 'seed=2', 'epochs=2',
                     'layer=4', 'threshold=.4', 'images=train', f'runs={runs}')
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(runs/'vgg6-digits-labels0+3+7-d4-fast2-seed2'/file)
    if 'layer' in table: assert table.layer.tolist() == [4]
    elif 'layers' in table: assert set(table.layers) == {'3+4'}
    else: assert table.epoch.tolist() == [1, 2]


@pytest.mark.parametrize('name, wrong, said', list(zip(PHASES, ['layer=14', 'dataset=cifar11', 'lyer=13'],
    ['layer: vgg16 has no layer 14; it may be 1 to 13', "dataset: there is no 'cifar11'; it may be digits",
     'lyer: there is no such parameter; there are arch, dataset, layer'])))
def test_a_wrong_parameter_ends_with_one_sentence(name, wrong, said, tmp_path):
    done = papermill(name, tmp_path/'out.ipynb', wrong, f'runs={tmp_path}/runs')
    assert done.returncode == 1
    assert f'ParameterError: {said}' in done.stderr
    assert 'Traceback' not in done.stderr.split(said)[0].rsplit('papermill.exceptions', 1)[-1]
    assert not (tmp_path/'runs').exists()


def test_a_lost_parameter_cell_is_an_error(tmp_path):
    nb = source('03_filter')
    for c in nb['cells']: c['metadata'].pop('tags', None)
    lost = tmp_path/'lost.ipynb'
    lost.write_text(json.dumps(nb))
    done = papermill(tmp_path/'lost', tmp_path/'out.ipynb', 'layer=3', cwd=tmp_path)
    assert done.returncode == 1
    assert 'has lost its parameter cell' in done.stderr


def test_help_lists_the_parameters():
    done = subprocess.run(['papermill', '--help-notebook', NBS/'03_filter.ipynb'], env=ENV,
                          capture_output=True, text=True, timeout=60)
    for name in NAMES: assert f'  {name}: ' in done.stdout
