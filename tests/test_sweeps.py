"The file of a sweep, its plan, and executors that lose their workers; faults/test_workers.py kills some."
import multiprocessing, os, shutil, signal, time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd, pytest

from dlmech.run import DlmechError, DlmechWarning, ParameterError, Parameters, write_csv, write_json
from dlmech.study.sweeps import (in_executor, Lost, Place, place_for, plan_calls, Processes, read_results,
                                 read_sweep, run_at, run_sweep, RunCall, SweepFile, threads_of)
from helpers import small_notebook

GIVEN = dict(arch='vgg6', dataset='digits', d=2, epochs=1)
pytestmark = pytest.mark.filterwarnings('ignore::dlmech.run.DlmechWarning')


def sweep_file(folder: Path, text: str) -> Path:
    "That text as a sweep's file; RUNS stands for a folder of runs."
    file = folder/'small.yaml'
    file.write_text(text.replace('RUNS', str(folder/'runs')))
    return file


SMALL = '''
parameters: {arch: vgg6, dataset: digits, d: 2, epochs: 1, runs: RUNS}
cross: {seed: [2, 0, 1]}
table: {layers.csv: [success_rate]}
'''


class Pretending(ThreadPoolExecutor):
    "Answers with a tenth of the seed; seeds in `fail` fail, those in `lose` are lost, once for each time."
    def __init__(self, fail=(), lose=(), calls=None):
        super().__init__(1)
        self.fail, self.lose, self.calls = fail, list(lose), [] if calls is None else calls

    def submit(self, work, call, slots):
        return super().submit(self.answer, call.params['seed'])

    def answer(self, seed):
        self.calls.append(seed)
        if seed in self.lose:
            self.lose.remove(seed)
            raise Lost('killed')
        return ({}, 'no memory') if seed in self.fail else (dict(success_rate=seed/10), '')


# ---- the table

def test_rows_stand_in_the_order_of_the_plan_and_only_missing_ones_are_made(tmp_path):
    file, calls = sweep_file(tmp_path, SMALL), []
    table = run_sweep(file, on=lambda: Pretending(fail=[0], lose=[2], calls=calls))
    assert table.columns.tolist() == [
        'notebook', 'arch', 'dataset', 'd', 'epochs', 'seed', 'success_rate', 'failed']
    assert table.seed.tolist() == [2, 0, 1]
    assert table.failed.tolist() == ['', 'no memory', '']
    assert sorted(calls) == [0, 1, 2, 2]
    path = tmp_path/'runs'/'sweep-small.csv'
    assert pd.read_csv(path).seed.tolist() == [2, 0, 1]
    calls.clear()
    assert (run_sweep(file, on=lambda: Pretending(calls=calls)).failed == '').all()
    assert calls == [0]
    assert pd.read_csv(path).seed.tolist() == [2, 0, 1]
    written, changed = path.read_bytes(), path.stat().st_mtime_ns
    run_sweep(file, on=lambda: pytest.fail('nothing is missing'))
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (written, changed)


def test_more_rows_later_leave_those_that_are_there(tmp_path):
    run_sweep(sweep_file(tmp_path, SMALL), on=Pretending)
    calls = []
    more = sweep_file(tmp_path, SMALL.replace('[2, 0, 1]', '[3, 2]'))
    assert run_sweep(more, on=lambda: Pretending(calls=calls)).seed.tolist() == [3, 2]
    assert calls == [3]
    assert pd.read_csv(tmp_path/'runs'/'sweep-small.csv').seed.tolist() == [3, 2, 0, 1]


def test_another_notebook_is_another_run(tmp_path):
    run_sweep(sweep_file(tmp_path, SMALL), on=Pretending)
    calls = []
    other = sweep_file(tmp_path, SMALL + 'notebook: 02_probe\n')
    table = run_sweep(other, on=lambda: Pretending(calls=calls))
    assert sorted(calls) == [0, 1, 2]
    assert table.notebook.tolist() == ['02_probe'] * 3
    assert len(pd.read_csv(tmp_path/'runs'/'sweep-small.csv')) == 6


@pytest.mark.parametrize('line', ['  heads: ridge', '  threshold: 0.4', '  seed: 1', '  layer: 2'])
def test_what_is_no_longer_given_is_another_run(tmp_path, line):
    "Its results stay in the table, and so do those of a table whose rows do not say all they were asked."
    text = f'parameters:\n  arch: vgg6\n  d: 2\n  runs: RUNS\n{line}\ntable: {{layers.csv: [success_rate]}}\n'
    calls = []
    first = run_sweep(sweep_file(tmp_path, text), on=lambda: Pretending(calls=calls))
    less = sweep_file(tmp_path, text.replace(f'{line}\n', ''))
    second = run_sweep(less, on=lambda: Pretending(calls=calls))
    assert len(calls) == 2
    assert first.columns.drop(line.split(':')[0].strip()).tolist() == second.columns.tolist()
    kept = pd.read_csv(tmp_path/'runs'/'sweep-small.csv')
    assert (len(kept), kept.run.nunique()) == (2, 2)
    run_sweep(less, on=lambda: pytest.fail('nothing is missing'))
    run_sweep(sweep_file(tmp_path, text), on=lambda: pytest.fail('nothing is missing'))
    path = tmp_path/'runs'/'sweep-small.csv'
    write_csv(path, kept.drop(columns='run'))  # a table of before
    run_sweep(less, on=lambda: Pretending(calls=calls))
    assert (len(calls), len(pd.read_csv(path))) == (3, 3)


def test_what_is_a_matter_of_the_machine_is_no_other_run(tmp_path):
    run_sweep(sweep_file(tmp_path, SMALL), on=Pretending)
    moved = sweep_file(tmp_path, SMALL.replace('epochs: 1', f'epochs: 1, device: cpu, root: {tmp_path}'))
    assert len(run_sweep(moved, on=lambda: pytest.fail('nothing is missing'))) == 3


def write_runs(file: Path) -> list[Path]:
    "What a phase 3 leaves behind of each run of the sweep, as far as a table asks for it; the runs' folders."
    runs = [run_at(Parameters(**call.params)) for _, call in plan_calls(read_sweep(file))]
    for run in runs:
        write_json(run.file('config.json'), dict(layers=['a']))
        seed = run.params.seed
        found = dict(layer=[1], success_rate=[seed/10], snr=[seed/2 if seed else None])
        write_csv(run.file('layers.csv'), pd.DataFrame(found))
        write_csv(run.file('train.csv'), pd.DataFrame(dict(loss=[seed + 1])))
    return [run.path for run in runs]


def test_a_column_that_is_asked_for_later_is_read_from_the_runs(tmp_path):
    run_sweep(sweep_file(tmp_path, SMALL), on=Pretending)
    more = sweep_file(tmp_path, SMALL.replace('_rate]', '_rate, snr]'))
    path = tmp_path/'runs'/'sweep-small.csv'
    folders = write_runs(more)
    table = run_sweep(more, on=lambda: pytest.fail('nothing is missing'))
    assert table.columns.tolist()[-3:] == ['success_rate', 'snr', 'failed']
    assert table.snr.fillna(-1).tolist() == [1, -1, .5]  # a ratio that is none is no column that is lacking
    assert table.success_rate.tolist() == [.2, 0, .1]
    written, changed = path.read_bytes(), path.stat().st_mtime_ns
    assert run_sweep(more, on=pytest.fail).equals(table)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (written, changed)
    wrong = sweep_file(tmp_path, SMALL.replace('_rate]', '_rate, sr]'))
    with pytest.raises(ParameterError, match="table: layers.csv: there is no 'sr'"): run_sweep(wrong)
    assert path.read_bytes() == written
    calls, loss = [], sweep_file(tmp_path, SMALL.replace('_rate]', '_rate]\n  train.csv: [loss]').replace(
        'table: {layers.csv', 'table:\n  layers.csv').replace('[loss]}', '[loss]'))
    shutil.rmtree(folders[2])
    table = run_sweep(loss, on=lambda: Pretending(calls=calls))
    assert calls == [1]  # whose folder is gone
    assert table.loss.tolist()[:2] == [3, 1]
    assert (table.failed == '').all()


def test_a_default_that_is_given_later_is_the_same_run(tmp_path):
    run_sweep(sweep_file(tmp_path, SMALL), on=Pretending)
    same = sweep_file(tmp_path, SMALL.replace('epochs: 1', 'epochs: 1, heads: exact'))
    assert run_sweep(same, on=lambda: pytest.fail('nothing is missing')).heads.tolist() == ['exact'] * 3
    run_sweep(sweep_file(tmp_path, SMALL + 'notebook: 02_probe\n'), on=Pretending)
    assert pd.read_csv(tmp_path/'runs'/'sweep-small.csv').heads.dropna().tolist() == ['exact'] * 3


def test_what_is_lost_too_often_is_named_and_the_rest_goes_on(tmp_path):
    file, calls = sweep_file(tmp_path, SMALL + 'tries: 2\n'), []
    with pytest.warns(DlmechWarning, match="seed0 .*is run again, as its worker was lost .*killed"):
        table = run_sweep(file, on=lambda: Pretending(lose=[0, 0, 0], calls=calls))
    assert sorted(calls) == [0, 0, 1, 2]
    assert table.failed[1].startswith('its worker was lost 2 times; the last time: Lost: killed')
    assert table.failed.tolist()[::2] == ['', '']


def killing(call: RunCall, slots: int, once: Path) -> tuple[dict, str]:
    "Kills its own process the first time that seed 0 is asked for."
    if call.params['seed'] == 0 and not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return dict(seed=call.params['seed']), ''


def test_a_broken_pool_of_processes_is_made_anew(tmp_path):
    made = []
    def pool():
        made.append(ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('fork')))
        return made[-1]
    calls = [(dict(seed=n), RunCall('', dict(seed=n), '', '')) for n in range(4)]
    place = Place('pool', pool, work=partial(killing, once=tmp_path/'once'))
    ended = list(in_executor(calls, place))
    assert sorted(row['seed'] for _, row, _ in ended) == [0, 1, 2, 3]
    assert all(key == row for key, row, _ in ended)
    assert len(made) == 2


def test_an_executor_that_takes_no_more_is_named(tmp_path):
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    with pytest.raises(DlmechError, match='the executor takes no runs any more .*goes on from what is there'):
        run_sweep(sweep_file(tmp_path, SMALL), on=lambda: closed)


def test_no_more_are_sent_at_a_time_than_asked_for():
    going, most = [], []
    class Counting(ThreadPoolExecutor):
        def submit(self, work, call, slots):
            going.append(1)
            most.append(len(going))
            future = super().submit(lambda: ({}, ''))
            future.add_done_callback(lambda f: going.pop())
            return future
    calls = [(dict(n=n), RunCall('', {}, '', '')) for n in range(6)]
    assert len(list(in_executor(calls, Place('', lambda: Counting(6), at_once=2)))) == 6
    assert max(most) <= 2


def test_leaving_early_cancels_what_is_going():
    futures = []
    class Never:
        def submit(self, *_):
            futures.append(Future())
            if len(futures) == 1: futures[0].set_result(({}, ''))
            return futures[-1]
    calls = [(dict(n=n), RunCall('', {}, '', '')) for n in range(3)]
    ended = in_executor(calls, Place('', Never))
    assert next(ended)[0] == dict(n=0)
    ended.close()
    assert [f.cancelled() for f in futures] == [False, True, True]


def test_processes_end_when_the_executor_is_shut_down():
    here = Processes(1)
    def wait(stop):
        while not stop(): time.sleep(.01)
        return 'ended'
    first, second = here.submit(wait), here.submit(wait)
    here.shutdown(wait=False, cancel_futures=True)
    assert first.result() == 'ended'
    assert second.cancelled()
    assert threads_of(10**6) == 1


# ---- the plan

def test_rows_and_crossed_values(tmp_path):
    s = read_sweep(sweep_file(tmp_path, '''
parameters: {dataset: digits, runs: RUNS}
rows: [{arch: vgg6, d: 2}, {arch: vgg16}]
cross: {seed: [0, 1], layer: [1, last]}
'''))
    calls = plan_calls(s)
    assert [tuple(key.values()) for key, _ in calls] == [
        ('03_filter', 'digits', *row, seed, layer) for row in (('vgg6', 2), ('vgg16', '')) for seed in (0, 1)
        for layer in (1, 'last')]
    call = calls[4][1]
    assert call.params['d'] == 32  # that of the digits, as a phase has it
    assert Path(call.out) == tmp_path/'runs'/'vgg16-digits-d32-fast-seed0'/'03_filter-layer-1.ipynb'
    assert len({call.out for _, call in calls}) == 8


def test_paths_mean_the_same_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = dict(GIVEN, dataset='folder:birds', root='data', weights='w.pth')
    (_, call), = plan_calls(SweepFile(parameters=given))
    assert call.params['runs'] == str(tmp_path/'runs')
    assert call.params['root'] == str(tmp_path/'data')
    assert call.params['weights'] == str(tmp_path/'w.pth')
    assert call.params['dataset'] == f'folder:{tmp_path}/birds'


@pytest.mark.parametrize('text, said', [
    ('cross: [', 'small.yaml is no YAML'), ('- 1', 'small.yaml: [1] is not possible'),
    ('cros: {seed: [1]}', "small.yaml: there is no 'cros'; it may be notebook, parameters, cross"),
    ('cross: {seed: 1}', 'small.yaml: cross.seed: 1 is not possible; input should be a valid list'),
    ('rows: [3]', 'small.yaml: rows.0: 3 is not possible'), ('tries: 0', 'tries: 0 is not possible'),
    ('notebook: 03_filler', 'notebook: there is no'),
    ('notebook: 05_reproduction', 'notebook: 05_reproduction'),
    ('parameters: {lyer: 3}', "parameters: there is no 'lyer'"),
    ('parameters: {arch: vgg7}', "arch: there is no 'vgg7'"),
    ('parameters: {dataset: cifar11}', "dataset: there is no 'cifar11'"),
    ('cross: {epochs: [1, -1]}', 'epochs: -1 is not possible'),
    ('parameters: {seed: 1}\ncross: {seed: [1]}', 'seed: it may be given once'),
    ('rows: [{runs: a}, {runs: b}]', 'runs: it may be given once'),
    ('cross: {seed: [1, 1]}', "sweep: {'seed': 1} is there twice"),
    ('rows: [{arch: vgg6}, {arch: vgg6, d: 32}]', "sweep: {'arch': 'vgg6', 'd': ''} is there twice"),
    ('cross: {seed: []}', 'sweep: there is no run'),
    ('table: {a.csv: [run]}', 'table: run is a column already'),
    ('cross: {layer: [1]}\ntable: {layers.csv: [layer]}', 'table: layer is a column already'),
])
def test_what_cannot_be_is_refused_in_a_sentence(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParameterError) as e: run_sweep(sweep_file(tmp_path, text))
    assert str(e.value).startswith(said)
    assert '\n' not in str(e.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['small.yaml']


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DlmechError, match='there is no such file'): run_sweep(tmp_path/'none.yaml')


@pytest.mark.parametrize('on, said', [
    ('cloud', "on: there is no 'cloud'; it may be local, dask://HOST:PORT, slurm"),
    (3, 'on: there is no 3'), ('dask://nowhere', 'dask://nowhere: no scheduler answers there'),
])
def test_a_place_that_cannot_be(tmp_path, on, said):
    if str(on).startswith('dask'): pytest.importorskip('distributed')
    with pytest.raises(DlmechError) as e:
        with place_for(on, 1, tmp_path): pass
    assert str(e.value).startswith(said)


def test_slurm_says_what_it_does_not_know(tmp_path):
    pytest.importorskip('submitit')
    for options in (dict(cluster='local', gpuz=1), dict(cluster='nowhere')):
        with pytest.raises(DlmechError, match='^slurm: '):
            with place_for('slurm', 0, tmp_path, options): pass
    options = dict(cluster='local', slurm_partition='gpu', gpus_per_node=1)
    with place_for('slurm', 3, tmp_path, options) as place: assert place.at_once == 3


# ---- results

def test_results_are_those_of_the_layer_that_was_asked_for(tmp_path):
    (_, call), = plan_calls(SweepFile(parameters=GIVEN | dict(layer=2, threshold=.4, runs=str(tmp_path))))
    run = run_at(Parameters(**call.params))
    write_json(run.file('config.json'), dict(layers=['a', 'b', 'c']))
    write_csv(run.tables/'layers.csv', pd.DataFrame(dict(layer=[1, 2, 3], snr=[1, 2, 3])))
    write_csv(run.file('layers.csv'), pd.DataFrame(dict(layer=[2], snr=[9])))
    write_csv(run.file('train.csv'), pd.DataFrame(dict(loss=[.5, .25])))
    write_json(run.file('more.json'), dict(pace=7))
    table = {'layers.csv': ['snr'], 'train.csv': ['loss'], 'more.json': ['pace']}
    assert read_results(call.params, table) == dict(snr=2, loss=.25, pace=7)
    with pytest.raises(DlmechError, match='table: the run has no probe.csv'):
        read_results(call.params, {'probe.csv': []})
    with pytest.raises(ParameterError, match="table: train.csv: there is no 'los'; it may be loss"):
        read_results(call.params, {'train.csv': ['los']})


# ---- a run that fails

def test_the_notebook_of_a_run_that_fails_is_kept_until_the_run_succeeds(tmp_path):
    params, out = dict(seed=9, runs=str(tmp_path/'runs')), tmp_path/'runs'/'small.ipynb'
    call = RunCall(str(small_notebook(tmp_path)), params, str(out), 'builtins:dict')
    failed = out.with_name('small-failed.ipynb')
    with pytest.raises(DlmechError) as e: call.do()
    assert str(e.value) == f'ValueError: no memory; {failed} shows where'
    assert [p.name for p in out.parent.iterdir()] == [failed.name]
    said = failed.read_text()
    assert 'begun' in said
    assert 'ValueError' in said
    (tmp_path/'bad').unlink()
    assert call.do() == params
    assert sorted(p.name for p in out.parent.iterdir()) == ['small.ipynb', 'vgg6-digits-d2-fast-seed9']
    with pytest.raises(ParameterError, match='notebook: there is no'): RunCall('none', {}, str(out), '').do()
    assert not failed.exists()
