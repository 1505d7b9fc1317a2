"""Every notebook as it is committed, and every phase notebook as papermill runs it; nbdev_test runs what
stands in them."""
import json, re
from functools import cache

import pandas as pd, pytest

from helpers import NBS, papermill, run, TOP
from refresh import FOLDED, TELLING

ALL = sorted(p.stem for p in NBS.glob('*.ipynb'))
PHASES = ['01_model', '02_probe', '03_filter']
NAMES = '''arch dataset layer labels d seed recipe epochs heads threshold images runs root device size plan
           weights normal'''.split()
# notebooks that are asked with all names, and a file in the run's folder that each makes
MADE = {'01_model': 'train.csv', '02_probe': 'probe.csv', '03_filter': 'train-threshold0.4/layers.csv',
        '06_explore': 'train-threshold0.4/layers.csv', '04_dilution': 'dilution.csv'}


def source(name): return json.loads((NBS/f'{name}.ipynb').read_text())


def parameter_cells(nb): return [c for c in nb['cells'] if 'parameters' in c['metadata'].get('tags', [])]


ASKED = [name for name in ALL if parameter_cells(source(name))]


@pytest.mark.parametrize('name', ALL)
def test_it_is_committed_with_its_outputs_and_no_error(name):
    cells = [c for c in source(name)['cells'] if c['cell_type'] == 'code']
    outputs = [o for c in cells for o in c['outputs']]
    assert not [o for o in outputs if o['output_type'] == 'error']
    silent = name == 'index'
    assert silent or any(o['output_type'] in ('execute_result', 'display_data', 'stream') for o in outputs)


def test_the_phases_have_parameters():
    assert set(MADE) < set(ASKED)
    assert '05_reproduction' in ASKED


@pytest.mark.parametrize('name', ASKED)
def test_it_has_exactly_one_parameter_cell_after_cleaning(name, tmp_path):
    copy = tmp_path/f'{name}.ipynb'
    copy.write_bytes((NBS/f'{name}.ipynb').read_bytes())
    (tmp_path/'settings.ini').write_bytes((TOP/'settings.ini').read_bytes())
    done = run('nbdev_clean', '--fname', copy, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cell, = parameter_cells(json.loads(copy.read_text()))
    lines = ''.join(cell['source']).splitlines()
    # papermill's help reads this form
    names = [re.match(r'(\w+): \w+ = .+  # .+', line)[1] for line in lines]
    assert names == (NAMES if name in MADE else [n for n in NAMES if n in names])


@pytest.fixture(scope='module')
def runs(tmp_path_factory): return tmp_path_factory.mktemp('runs')


@pytest.fixture(scope='module')
def executed(tmp_path_factory, runs):
    "`executed('03_filter')`: the notebook as papermill leaves it, run once with parameters not its own."
    folder = tmp_path_factory.mktemp('out')
    @cache
    def execute(name):
        done = papermill(name, folder/f'{name}.ipynb', 'arch=vgg6', 'd=4', 'labels=0,3,7', 'seed=2',
                         'epochs=2', 'layer=4', 'threshold=.4', 'images=train', f'runs={runs}')
        assert done.returncode == 0, done.stderr
        return json.loads((folder/f'{name}.ipynb').read_text())
    return execute


@pytest.mark.parametrize('name', MADE)
def test_papermill_runs_it_with_other_parameters(name, executed, runs):
    executed(name)
    table = pd.read_csv(runs/'vgg6-digits-labels0+3+7-d4-fast2-seed2'/MADE[name])
    if 'layer' in table: assert table.layer.tolist() == [4]
    elif 'layers' in table: assert set(table.layers) == {'3+4'}
    else: assert table.epoch.tolist() == [1, 2]


@pytest.mark.parametrize('name', [*PHASES, '06_explore'])
def test_its_answer_stands_in_its_first_ten_cells(name, executed):
    "A sentence with numbers, and a table or a figure, all of this run."
    shown = [o['data'] for c in executed(name)['cells'][:10] if c['cell_type'] == 'code'
             for o in c['outputs'] if 'data' in o]
    sentences = [''.join(data['text/markdown']) for data in shown if 'text/markdown' in data]
    assert any(re.search(r'\d', s) for s in sentences), sentences
    assert any('image/png' in data or '<table' in ''.join(data.get('text/html', '')) for data in shown)


def is_folded(cell): return cell['metadata'].get('jupyter', {}).get('source_hidden', False)


@pytest.mark.parametrize('name', FOLDED)
def test_the_source_is_folded_and_demos_are_open(name):
    "As JupyterLab knows it. python tests/refresh.py folds."
    cells = [(''.join(c['source']), c) for c in source(name)['cells'] if c['cell_type'] == 'code']
    assert [text for text, c in cells if text.startswith('#|') and not is_folded(c)] == []
    assert [c for c in parameter_cells(source(name)) if is_folded(c)] == []
    exported = sum(text.startswith('#| export') for text, _ in cells)
    asserted = [(text, c) for text, c in cells if re.search('^assert ', text, re.M)]
    demos = [is_folded(c) for text, c in asserted if not text.startswith('#|')]
    if exported < 5: return  # a notebook that only tells
    assert len(demos) > 2
    assert not any(demos)


@pytest.mark.parametrize('name', TELLING)
def test_what_computes_the_answer_is_folded(name):
    "Above `How it works` stand parameters, sentences, tables and figures, the first within ten cells."
    cells = source(name)['cells']
    ends = [i for i, c in enumerate(cells) if ''.join(c['source']).startswith('# How it works')]
    above = cells[:ends[0] if ends else None]
    code = [c for c in above if c['cell_type'] == 'code' and not is_folded(c)]
    assert [''.join(c['source']) for c in code if 'parameters' not in c['metadata'].get('tags', [])] == []
    told = [i for i, c in enumerate(above) for o in c.get('outputs', []) if 'data' in o]
    assert min(told) < 10


@pytest.mark.parametrize('name', ALL)
def test_it_is_small(name):
    "python tests/refresh.py tidies outputs."
    assert (NBS/f'{name}.ipynb').stat().st_size < 350_000


@pytest.mark.parametrize('name, wrong, said', [
    ('01_model', 'layer=14', 'layer: vgg16 has no layer 14; it may be 1 to 13'),
    ('02_probe', 'dataset=cifar11', "dataset: there is no 'cifar11'; it may be digits"),
    ('03_filter', 'lyer=13', 'lyer: there is no such parameter; there are arch, dataset, layer'),
])
def test_a_wrong_parameter_ends_with_one_sentence(name, wrong, said, tmp_path):
    done = papermill(name, tmp_path/'out.ipynb', wrong, f'runs={tmp_path}/runs')
    assert done.returncode == 1
    assert f'ParameterError: {said}' in done.stderr
    assert 'Traceback' not in done.stderr.split(said)[0].rsplit('papermill.exceptions', 1)[-1]
    assert not (tmp_path/'runs').exists()


def test_a_lost_parameter_cell_is_an_error(tmp_path):
    nb = source('03_filter')
    for c in nb['cells']: c['metadata'].pop('tags', None)
    (tmp_path/'lost.ipynb').write_text(json.dumps(nb))
    done = papermill(tmp_path/'lost', tmp_path/'out.ipynb', 'layer=3', cwd=tmp_path)
    assert done.returncode == 1
    assert 'has lost its parameter cell' in done.stderr


def test_help_lists_the_parameters():
    done = run('papermill', '--help-notebook', NBS/'03_filter.ipynb')
    for name in NAMES: assert f'  {name}: ' in done.stdout, done.stderr
