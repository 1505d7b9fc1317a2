"The command `dlmech`: what it says, does and refuses, its help and completion, and the explorer it serves."
import io, json, os, re, shutil, signal, subprocess, sys, types, warnings
from contextlib import redirect_stderr

import nbformat, pytest

import dlmech, dlmech.cli, dlmech.look.report, dlmech.model, dlmech.run
from dlmech.arch import get_model
from dlmech.cli import finished_runs, main, notebook_of
from dlmech.datasets import get_data
from dlmech.parameters import Parameters
from dlmech.run import DlmechWarning, progress, quietly
from helpers import ENV, run, small_notebook, TOP, wait_for

SMALL = '--arch vgg6 --d 2 --epochs 1 --labels 0,3,7 --heads ridge'.split()
NAME = 'vgg6-digits-labels0+3+7-d2-fast1-seed0-ridge'
DLMECH = sys.executable, '-m', 'dlmech'


def flat(text: str) -> str: return ' '.join(text.split())


@pytest.fixture(scope='module')
def small_run(tmp_path_factory):
    "The folder of a small run."
    runs = tmp_path_factory.mktemp('runs')
    assert main(['measure', '-q', *SMALL, '--runs', str(runs)]) == 0
    return runs/NAME


# ---- help, version, completion

def test_help_names_every_parameter_and_no_torch_is_needed():
    code = '''
import sys
from dlmech.cli import main
for words in [], ['measure'], ['report'], ['explore'], ['sweep'], ['zoo'], ['notebooks']:
    assert main([*words, '--help']) == 0
assert main(['--version']) == 0
print({'torch', 'numpy', 'pandas'} & set(sys.modules))
'''
    done = run(sys.executable, '-c', code, cwd=TOP, env=ENV | {'COLUMNS': '100'})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [f'dlmech {dlmech.__version__}', 'set()']
    said = flat(done.stdout)
    for name, f in Parameters.__dataclass_fields__.items():
        assert f'--{name}' in said
        assert flat(f.metadata['description']).replace(' ', '') in said.replace(' ', ''), name


def test_the_module_is_the_command():
    done = run(*DLMECH, '--version', cwd=TOP)
    assert (done.returncode, done.stdout) == (0, f'dlmech {dlmech.__version__}\n')


def test_a_shell_completes(tmp_path):
    "The script that bash is given, in bash: commands, options, and the words that a parameter may be."
    (tmp_path/'runs'/'mine').mkdir(parents=True)
    (tmp_path/'runs'/'mine'/'config.json').touch()
    shim = tmp_path/'dlmech'
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m dlmech "$@"\n')
    shim.chmod(0o755)
    env = ENV | {'PATH': f'{tmp_path}:{ENV["PATH"]}'}
    script = run('dlmech', cwd=tmp_path, env=env | {'_DLMECH_COMPLETE': 'source_bash'}).stdout
    (tmp_path/'script').write_text(script)
    function = re.search(r'complete .*-F (\w+) dlmech', script)[1]
    def completed(*words: str) -> list[str]:
        code = (f'. ./script; COMP_WORDS=("$@"); COMP_CWORD={len(words) - 1}; {function} dlmech; '
                'printf "%s\\n" "${COMPREPLY[@]}"')
        return run('bash', '-c', code, 'bash', *words, cwd=tmp_path, env=env).stdout.split()
    assert completed('dlmech', 'me') == ['measure']
    assert '--threshold' in completed('dlmech', 'measure', '--th')
    assert completed('dlmech', 'measure', '--heads', 'e') == ['exact']
    assert completed('dlmech', 'report', 'ru') == ['runs/mine']


@pytest.mark.parametrize('shell', ['zsh', 'fish'])
def test_other_shells_have_a_script(shell):
    done = run(*DLMECH, cwd=TOP, env=ENV | {'_DLMECH_COMPLETE': f'source_{shell}'})
    assert 'dlmech' in done.stdout
    assert 'complet' in done.stdout or 'compdef' in done.stdout


def test_runs_that_are_there_are_offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert finished_runs('') == []
    for name in 'b', 'a':
        (tmp_path/'runs'/name).mkdir(parents=True)
        (tmp_path/'runs'/name/'config.json').touch()
    (tmp_path/'runs'/'empty').mkdir()
    assert finished_runs('ru') == ['runs/a', 'runs/b']
    assert finished_runs('runs/b') == ['runs/b']


# ---- measure

def test_measure_leaves_a_run_and_says_what_is_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['measure', *SMALL, '--layer', '4']) == 0
    out = capsys.readouterr().out
    m = dlmech.open(tmp_path/'runs'/NAME)
    assert out.splitlines()[0] == f'runs/{NAME}'
    assert m.layers.layer.tolist() == [4]
    assert f'{m.layers.snr[0]:.3f}' in out
    assert f'dlmech report runs/{NAME} ' in out
    assert 'dlmech measure … --layer all' in out
    assert main(['measure', *SMALL, '--layer', 'all', '-v']) == 0
    out, err = capsys.readouterr()
    assert dlmech.open(tmp_path/'runs'/NAME).layers.layer.tolist() == [1, 2, 3, 4, 5]
    assert '--layer all' not in out
    assert 'dlmech: phase 3: 122 test images through layers 1, 2, 3, 5\n' in err.replace('\r', '\n')
    assert 'phase 1: epoch' not in err  # it was trained before


def test_data_is_another_name_for_dataset(tmp_path, capsys):
    assert main(['measure', *SMALL, '--data', 'folder:/nowhere', '--runs', str(tmp_path)]) == 2
    assert 'dataset: ' in capsys.readouterr().err


def test_quiet_is_quiet_and_says_what_it_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['measure', *SMALL, '--runs', 'a']) == 0
    loud = capsys.readouterr()
    assert 'phase 1' in loud.err
    assert main(['measure', '-q', *SMALL, '--runs', 'b']) == 0
    quiet = capsys.readouterr()
    assert quiet.err == ''
    assert quiet.out == loud.out.replace(f'a/{NAME}', f'b/{NAME}')


# ---- what cannot be, and what is stopped

@pytest.mark.parametrize('words, said', [
    (['measure', '--d', 'x'], "d: 'x' is not possible; it may be a whole number from 0 to 1,024"),
    (['measure', '--layer', '14', '--runs', '{tmp}'], "layer: vgg16 has no layer '14'; it may be 1 to 13"),
    (['measure', '--heads', 'fast'], 'heads: fast ones hung on their start and are gone'),
    (['measure', '--threshold', 'nan'], 'threshold: '),
    (['report', '{tmp}'], '{tmp} is no finished run (there is no config.json)'),
    (['report', '{run}', '--threshold', '7'], "threshold: '7' is not possible"),
    (['report', '{run}', '{tmp}'], '{tmp} is no finished run'),
    (['explore', '{tmp}', '--no-browser'], '{tmp} is no finished run'),
    (['notebooks', '{nbs}'], '{nbs} already holds'),
])
def test_what_cannot_be_is_one_sentence_and_status_2(words, said, small_run, tmp_path, capsys):
    places = dict(tmp=tmp_path, run=small_run, nbs=TOP/'nbs')
    assert main([w.format(**places) for w in words]) == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert err.startswith(f'dlmech: {said.format(**places)}')
    assert err.count('\n') == 1


def test_wrong_usage_is_said_with_status_2(capsys):
    for words in (['measure', '--lyer', '3'], ['mesure'], ['report']):
        assert main(words) == 2
        assert 'Traceback' not in capsys.readouterr().err


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    def wrong(**given): raise ValueError('a mistake')
    monkeypatch.setattr(dlmech.model, 'start', wrong)
    with pytest.raises(ValueError, match='a mistake'): main(['measure'])


def stoppable():
    "In a new process: Ctrl-C stops it, also where the tests themselves run in the background and ignore it."
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_key_that_stops_it_is_a_line_and_what_was_trained_stays(tmp_path):
    p = subprocess.Popen([*DLMECH, 'measure', '--arch', 'vgg6', '--d', '2', '--epochs', '1000', '--runs',
                          str(tmp_path), '-v'], env=ENV, stderr=subprocess.PIPE, text=True,
                         preexec_fn=stoppable)
    try:
        wait_for(lambda: list(tmp_path.glob('*/train.csv')), p)
        p.send_signal(signal.SIGINT)
        _, err = p.communicate(timeout=300)
    finally: p.kill()
    assert p.returncode == 130
    assert 'Traceback' not in err
    assert err.splitlines()[-1] == 'dlmech: stopped; what was finished is kept'


def test_the_commands_leave_logging_and_warnings_as_they_were(small_run, monkeypatch, capsys):
    def warns(*args, **kwargs):
        warnings.warn('a word', DlmechWarning, stacklevel=2)
        return 'done'
    monkeypatch.setattr(dlmech.look.report, 'report', warns)
    before = (list(dlmech.run.logger.handlers), dlmech.run.logger.level, warnings.showwarning)
    assert main(['report', str(small_run)]) == 0
    assert capsys.readouterr().err == 'dlmech: a word\n'
    assert main(['report', str(small_run), '-q']) == 0
    assert capsys.readouterr().err == ''
    assert before == (dlmech.run.logger.handlers, dlmech.run.logger.level, warnings.showwarning)


# ---- report, sweep, zoo

def test_report_is_asked_for_what_the_options_say(small_run, monkeypatch, capsys):
    asked = []
    def recorded(m, *args, **how):
        asked.append((m.title, *args, how))
        return 'index.html'
    monkeypatch.setattr(dlmech.look.report, 'report', recorded)
    assert main(['report', str(small_run)]) == 0
    assert main(['report', str(small_run), str(small_run), '--layers', '5,layers.4', '--out', 'x']) == 0
    assert asked[0] == (NAME, None, {})
    title, out, how = asked[1]
    assert (title, out, how['layers'], how['against'].title) == (NAME, 'x', '5,layers.4', NAME)
    assert capsys.readouterr().out == 'index.html\n' * 2


def test_sweep_runs_the_file_where_it_is_told(monkeypatch, capsys):
    import pandas as pd
    asked, table = [], pd.DataFrame(dict(K=[3], failed=['']))
    def run_sweep(file, on='local', workers=0):
        asked.append((str(file), on, workers))
        return table
    monkeypatch.setitem(sys.modules, 'dlmech.study.sweeps', types.SimpleNamespace(run_sweep=run_sweep))
    assert main(['sweep', 'my.yaml']) == 0
    assert main(['sweep', 'my.yaml', '--on', 'dask://host:1', '--workers', '3']) == 0
    assert asked == [('my.yaml', 'local', 0), ('my.yaml', 'dask://host:1', 3)]
    assert capsys.readouterr().out == f'{table}\n' * 2


def test_a_sweep_with_a_run_that_fails_ends_with_status_1(tmp_path):
    "The other run is made, the table printed; once what was wrong is mended, the same command ends with 0."
    small_notebook(tmp_path)
    (tmp_path/'s.yaml').write_text('notebook: small.ipynb\nparameters: {arch: vgg6, d: 2}\n'
                                   'cross: {seed: [9, 0]}\ntable: {found.json: [ninth]}\n')
    command = *DLMECH, 'sweep', 's.yaml', '-q'
    done = run(*command, '--workers', '2', cwd=tmp_path, env=ENV)
    assert done.returncode == 1, done.stderr
    _, failed, made = done.stdout.splitlines()
    assert 'ValueError: no memory; ' in failed
    assert 'small-failed.ipynb shows where' in failed
    assert made.split()[-1] == '0.0'
    (tmp_path/'bad').unlink()
    done = run(*command, cwd=tmp_path, env=ENV)
    assert done.returncode == 0, done.stderr
    assert 'failed.ipynb' not in done.stdout
    assert not list(tmp_path.rglob('*-failed.ipynb'))


def test_zoo_lists_what_there_is(capsys):
    assert main(['zoo']) == 0
    out = capsys.readouterr().out
    for name, rate in dlmech.zoo().test_success_rate.items(): assert re.search(f'{name} .* {rate}', out)


# ---- explore

def parameters_in(nb) -> dict:
    "What papermill has filled in."
    filled, = (c.source for c in nb.cells if c.source.startswith('# Parameters'))
    found = {}
    exec(filled, found)
    return {k: v for k, v in found.items() if k in Parameters.__dataclass_fields__}


def test_the_notebook_of_a_run_means_that_run_and_nothing_of_it_is_measured_again(small_run):
    nb = notebook_of(small_run)
    p = parameters_in(nb)
    assert p['layer'] == 5
    again = dlmech.start(**p)
    assert again.path == small_run
    assert dlmech.measurement.missing_layers(again, again.layer_numbers) == []
    assert not any(c.source.startswith('# How it works') for c in nb.cells)
    assert not [o for c in nb.cells if c.cell_type == 'code' for o in c.outputs]
    nbformat.validate(nb)


def test_what_no_parameters_mean_gets_the_sliders_alone(small_run, tmp_path):
    other = shutil.copytree(small_run, tmp_path/'renamed')
    three = get_data('digits', labels=[0, 3, 7])
    m = dlmech.measure(get_model('vgg6', 3, d=2), three.train, three.test, layers='layers.5', heads='ridge')
    for folder in other, m.save(tmp_path/'saved'), small_run:
        nb = notebook_of(folder, alone=True) if folder == small_run else notebook_of(folder)
        assert [c.cell_type for c in nb.cells] == ['markdown', 'code']
        found = {}
        exec(nb.cells[1].source.replace('m.explore()', 'e = m.explore()'), found)
        assert found['e'].m.title == dlmech.open(folder).title


def test_explore_opens_a_notebook_and_keeps_what_was_changed_in_it(small_run, monkeypatch, capsys):
    served = []
    monkeypatch.setattr(dlmech.cli, 'serve', lambda *asked: served.append(asked))
    folder = str(small_run)
    assert main(['explore', folder, '--port', '9', '--no-browser', '--', '--ip', '::']) == 0
    path = small_run/'explore.ipynb'
    assert served == [(path, 'jupyterlab', ['--port=9', '--no-browser', '--ip', '::'])]
    assert capsys.readouterr().out == f'{path}\n'
    nb = json.loads(path.read_text())
    nb['cells'] = nb['cells'][:1]
    path.write_text(json.dumps(nb))
    assert main(['explore', folder]) == 0
    assert json.loads(path.read_text()) == nb
    assert main(['explore', folder, '--voila']) == 0
    assert served[2] == (small_run/'explore-page.ipynb', 'voila', [])
    assert dlmech.open(small_run).layers.layer.tolist() == [5]  # nothing minds the notebooks beside it


def test_a_server_that_is_missing_is_said(small_run, monkeypatch, capsys):
    monkeypatch.setattr(dlmech.cli, 'find_spec', lambda name: None)
    assert main(['explore', str(small_run), '--voila']) == 2
    assert 'voila is not installed; pip install "dlmech[explore]" brings it' in capsys.readouterr().err


def test_voila_serves_the_sliders(small_run):
    "The real server: the page it answers with has run the notebook, and its pictures are there."
    pytest.importorskip('voila', reason='voila (extra explore) is not installed')
    import urllib.request
    p = subprocess.Popen([*DLMECH, 'explore', str(small_run), '--voila', '--no-browser'], env=ENV,
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=stoppable)
    try:
        lines = []
        def address():
            lines.append(p.stderr.readline())
            return re.search(r'http://(localhost|127\.0\.0\.1):\d+/', lines[-1])
        url = wait_for(address, p)[0]
        page = urllib.request.urlopen(url, timeout=300).read().decode()
        p.send_signal(signal.SIGINT)
        p.communicate(timeout=300)
    finally: p.kill()
    assert f'<h1 id="{NAME}' in page or f'>{NAME}<' in page
    assert 'application/vnd.jupyter.widget-view+json' in page
    assert 'Traceback' not in page


# ---- bars

def test_bars_are_quiet_where_one_says_so(monkeypatch):
    def written(**how):
        with redirect_stderr(io.StringIO()) as err: list(progress(range(3), 'a bar', **how))
        return err.getvalue()
    monkeypatch.delenv('DLMECH_QUIET', raising=False)
    assert 'a bar' in written()
    assert written(quiet=True) == ''
    with quietly(): assert written() == ''
    monkeypatch.setenv('DLMECH_QUIET', '1')
    assert written() == ''
    monkeypatch.setenv('DLMECH_QUIET', '0')
    assert 'a bar' in written()


def test_measure_is_quiet_when_told(capsys):
    three = get_data('digits', labels=[0, 3, 7])
    given = get_model('vgg6', 3, d=2), three.train, three.test
    dlmech.measure(*given, layers='layers.5', quiet=True)
    assert capsys.readouterr().err == ''
    dlmech.measure(*given, layers='layers.5')
    assert capsys.readouterr().err != ''


def test_neither_a_bar_nor_a_log_leaves_a_line_in_a_notebook():
    """In a real kernel: a display that was there and is empty, nothing on stderr, where Python's own last
    resort would print a warning that nobody listens to."""
    from nbclient import NotebookClient
    code = '''from dlmech.run import logger, progress
logger.warning('nobody listens')
bar = progress(total=2, desc='a bar')
bar.delay = 0
bar.update()
bar.refresh()
shown = bar.fp.text
bar.close()
print(shown)'''
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    env = {k: v for k, v in os.environ.items() if k != 'DLMECH_QUIET'}
    NotebookClient(nb).execute(env=env)
    outputs = nb.cells[0].outputs
    assert [o.get('data') for o in outputs if o.output_type == 'display_data'] == [{}]
    assert [o.name for o in outputs if o.output_type == 'stream'] == ['stdout']
    assert 'a bar' in outputs[-1].text
