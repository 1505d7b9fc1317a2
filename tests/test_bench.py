"`python -m bench`: all tables with their machine, what fails named, figures with slopes; no time is tested."
import json, sys
from importlib import import_module

import numpy as np, pandas as pd, pytest

from helpers import run, TOP

bench = import_module('bench.__main__')
N = [100, 200, 400, 800]
GROWTH = pd.DataFrame([dict(peer=peer, N=n, seconds=n**p / 1e6, ratio=p) for peer, p in (('a', 1), ('b', 2))
                       for n in N])


def pretended(name: str, quick: bool) -> dict[str, pd.DataFrame]:
    "The tables of a bench that takes no time; that of the null fails."
    if name == 'null': raise MemoryError('no memory\nat all')
    assert quick
    return {name: GROWTH, 'ratios': pd.DataFrame(dict(what=['x <b>', 'y'], ratio=[3., .5]))}


def test_every_bench_has_tables():
    names = bench.benches()
    assert {*'afcc augment checks explore limits null peers phases train'.split()} <= set(names)
    for name in names: assert callable(import_module(f'bench.{name}').tables), name


def test_what_fails_is_named_and_the_rest_goes_on(tmp_path, capsys):
    assert bench.main(['--only', 'null,train', '--quick', '--out', str(tmp_path)], pretended) == 1
    said = capsys.readouterr().out
    assert 'null failed: MemoryError: no memory at all' in said
    assert 'load average before' in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ['index.html', 'machine.json', 'train-ratios.csv',
                                                          'train.csv']
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'train.csv'), GROWTH, check_exact=False)
    about = json.loads((tmp_path/'machine.json').read_text())
    assert about['failed'] == {'null': 'MemoryError: no memory at all'}
    assert {'CPU', 'flags', 'cores', 'memory', 'threads', 'versions', 'load average after'} <= set(about)
    page = (tmp_path/'index.html').read_text()
    assert page.count('src="data:image/png;base64,') == 2
    assert 'x &lt;b&gt;' in page
    assert 'null failed' in page
    assert bench.main(['--only', 'train', '--quick', '--out', str(tmp_path)], pretended) == 0


def test_a_call_that_was_cut_goes_on_and_what_is_there_stands(tmp_path, capsys):
    asked, calls = ['--only', 'afcc,train,checks', '--quick', '--out', str(tmp_path)], []
    def cut(name: str, quick: bool) -> dict[str, pd.DataFrame]:
        calls.append(name)
        if calls == ['afcc', 'train']: raise KeyboardInterrupt
        return {name: GROWTH, 'more': GROWTH.assign(peer='<c>')}
    with pytest.raises(KeyboardInterrupt): bench.main(asked, cut)
    assert bench.main(asked, cut) == 0
    assert calls == ['afcc', 'train', 'train', 'checks']
    assert 'afcc: there already' in capsys.readouterr().out
    page = (tmp_path/'index.html').read_text()
    assert all(f'<h2>{name}</h2>' in page for name in ('afcc', 'afcc-more', 'train', 'checks-more'))
    (tmp_path/'train-more.csv').unlink()                       # what has gone is measured again
    assert bench.main(asked, cut) == 0
    assert calls[4:] == ['train']
    about = json.loads((tmp_path/'machine.json').read_text())
    about['done']['checks']['CPU'] = 'another'                 # and so is what another machine has measured,
    about['done']['train']['instructions'] = 'other'           # or this one by other instructions
    (tmp_path/'machine.json').write_text(json.dumps(about))
    assert bench.main(asked, cut) == 0
    assert calls[5:] == ['train', 'checks']
    assert bench.main([*asked, '--again'], cut) == 0
    assert calls[7:] == ['afcc', 'train', 'checks']


def test_growth_is_drawn_with_its_slope():
    assert bench.growth_of(GROWTH) == dict(x='N', y=['seconds'], by=['peer'])
    fig = bench.growth_figure(GROWTH, **bench.growth_of(GROWTH))
    labels = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    assert labels == ['a: 1.00', 'b: 2.00']
    assert bench.slope(pd.Series(N), 5 / np.sqrt(pd.Series(N))) == pytest.approx(-.5)
    assert bench.growth_of(GROWTH[GROWTH.N < 400]) is None
    asked = GROWTH.rename(columns=dict(N='many'))
    assert bench.growth_of(asked) is None
    asked.attrs['growth'] = dict(x='many', y=['seconds'], by=[])
    assert bench.picture(asked)
    assert bench.picture(GROWTH[['peer']]) == ''


def test_there_is_no_such_bench(capsys):
    with pytest.raises(SystemExit): bench.main(['--only', 'nill'])
    assert "there is no 'nill'; it may be afcc, augment" in capsys.readouterr().err


def test_the_command_measures_in_a_process_of_its_own(tmp_path):
    done = run(sys.executable, '-m', 'bench', '--only', 'null', '--quick', '--out', tmp_path, cwd=TOP)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path/'null.csv')
    assert table.K.tolist() == [10, 100, 100]
    assert (table.with_null_s > 0).all()
    assert table.machine.str.contains('threads 1, dlmech').all()
    assert 'machine' not in done.stdout
