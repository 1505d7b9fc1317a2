"""A study: rows listed, a trial for each; what is there stays to the last digit, what was killed goes on,
what fails is named or raised, and two processes may fill one table."""
import json
from pathlib import Path

import pandas as pd, pytest
from hypothesis import given, settings, strategies as st

from dlmech.run import DlmechError
from dlmech.study.study import describe_error, key_of, put_row, Study
from helpers import killed, python

ROWS = [dict(kind=kind, K=K, whole=whole)
        for kind in ('a', 'b, c') for K in (2, 3.5) for whole in (False, True)]


def study(path: Path, trial, rows=ROWS, **kwargs) -> Study:
    "The study of `table.csv` in that folder."
    return Study(path/'table.csv', rows, trial, **kwargs)


def counting(calls: list):
    "A trial that says which keys it was called with."
    def trial(row):
        calls.append(row)
        return dict(value=len(calls) / 3)
    return trial


def test_every_row_is_made_once_in_its_order(tmp_path):
    calls = []
    table = study(tmp_path, counting(calls)).fill()
    assert calls == ROWS
    assert table[list(ROWS[0])].to_dict('records') == ROWS
    before = (tmp_path/'table.csv').read_bytes()
    again = study(tmp_path, counting(calls)).fill()
    assert len(calls) == len(ROWS)
    assert (tmp_path/'table.csv').read_bytes() == before
    pd.testing.assert_frame_equal(again, table)


def test_a_study_gives_its_own_rows_of_a_table_that_holds_more(tmp_path):
    calls = []
    study(tmp_path, counting(calls), ROWS[:5]).fill()
    mine = study(tmp_path, counting(calls), [ROWS[6], ROWS[1], ROWS[6]])
    assert mine.missing == [ROWS[6]]
    assert len(mine.table()) == 1
    table = mine.fill()
    assert calls == [*ROWS[:5], ROWS[6]]
    assert table[list(ROWS[0])].to_dict('records') == [ROWS[6], ROWS[1]]
    assert len(pd.read_csv(tmp_path/'table.csv')) == 6


def test_a_key_may_be_an_object_whose_text_is_written(tmp_path):
    class Method:
        def __str__(self): return 'filters by noise'
    study(tmp_path, lambda row: dict(value=1), [dict(way=Method(), amount=.5)]).fill()
    assert (tmp_path/'table.csv').read_text() == 'way,amount,value\nfilters by noise,0.5,1\n'
    assert study(tmp_path, counting([]), [dict(way='filters by noise', amount=.50)]).missing == []


texts = st.text(st.characters(blacklist_categories=['Cs', 'Cc']), max_size=8)
values = st.one_of(st.integers(-10**6, 10**6), st.floats(allow_nan=False, allow_infinity=False), texts)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(values, values, values), min_size=1, max_size=5))
def test_what_is_written_stays_to_the_last_character(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp('table')/'t.csv'
    lines = []
    for i, (a, b, c) in enumerate(rows):
        put_row(path, dict(i=i, a=a, b=b, c=c), ['i'])
        written = path.read_text()
        assert written.startswith(''.join(lines))
        lines = [written]
    assert len(pd.read_csv(path, dtype=str, keep_default_na=False)) == len(rows)


def test_a_killed_study_goes_on_where_it_was(tmp_path):
    code = '''
import sys
from pathlib import Path
from dlmech.study.study import Study
def trial(row):
    print(row['n'], flush=True)
    return dict(root=row['n']**.5)
Study(Path(sys.argv[1])/'t.csv', [dict(n=n) for n in range(6)], trial).fill()
'''
    killed(code, tmp_path, after=(3, 'dlmech.study.study', 'put_row'))
    there = (tmp_path/'t.csv').read_text()
    assert len(there.splitlines()) == 1 + 3
    out, err = python(code, tmp_path).communicate(timeout=600)
    assert out.split() == ['3', '4', '5'], err
    assert (tmp_path/'t.csv').read_text().startswith(there)
    assert pd.read_csv(tmp_path/'t.csv').n.tolist() == list(range(6))


def test_two_processes_fill_one_table(tmp_path):
    code = '''
import sys
from pathlib import Path
from dlmech.study.study import Study
mine = int(sys.argv[2])
rows = [dict(n=n) for n in range(mine, 40, 2)]
Study(Path(sys.argv[1])/'t.csv', rows, lambda row: dict(square=row['n']**2)).fill()
'''
    both = [python(code, tmp_path, mine) for mine in (0, 1)]
    for p in both:
        _, err = p.communicate(timeout=600)
        assert p.returncode == 0, err
    table = pd.read_csv(tmp_path/'t.csv')
    assert sorted(table.n) == list(range(40))
    assert (table.square == table.n**2).all()


def test_a_failure_is_named_and_tried_again(tmp_path):
    calls = []
    def trial(row):
        calls.append(row['n'])
        if row['n'] == 1 and calls.count(1) == 1: raise ValueError('not yet\nand more')
        return dict(images=100 + row['n'])
    rows = [dict(n=n) for n in (1, 0, 2)]
    table = study(tmp_path, trial, rows, failed='failed').fill()
    assert table.failed.tolist() == ['ValueError: not yet', '', '']
    table = study(tmp_path, trial, rows, failed='failed').fill()
    assert calls == [1, 0, 2, 1]
    assert table.failed.tolist() == ['', '', '']
    # as text whole numbers stay whole, though one was missing for a while
    assert (tmp_path/'table.csv').read_text() == 'n,images,failed\n0,100,\n2,102,\n1,101,\n'


def test_a_failure_without_a_name_ends_the_study(tmp_path):
    def trial(row):
        if row['n'] == 1: raise KeyError('no such thing')
        return dict(value=1)
    failing = study(tmp_path, trial, [dict(n=n) for n in range(3)])
    with pytest.raises(KeyError, match='no such thing'): failing.fill()
    assert failing.table().n.tolist() == [0]
    def make(rows):
        for row in rows: yield row, {}, 'its process ended'
    with pytest.raises(DlmechError, match='its process ended'): failing.fill(make)


def test_an_interrupt_is_no_failure(tmp_path):
    def trial(row): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): study(tmp_path, trial, failed='failed').fill()
    assert not (tmp_path/'table.csv').exists()


def test_what_makes_rows_side_by_side_is_closed_when_the_study_ends(tmp_path):
    closed = []
    def make(rows):
        try:
            for row in reversed(rows): yield row, dict(value=row['n']), 'no' if row['n'] == 1 else ''
        finally: closed.append(True)
    three = study(tmp_path, None, [dict(n=n) for n in (2, 10, 1)], failed='failed', sort=['n'])
    table = three.fill(make)
    assert closed == [True]
    assert table.n.tolist() == [2, 10, 1]  # as they are listed
    assert pd.read_csv(tmp_path/'table.csv').n.tolist() == [1, 2, 10]  # as numbers, not as text
    assert [row['n'] for row in three.missing] == [1]


def test_a_damaged_table_is_named(tmp_path):
    (tmp_path/'table.csv').write_text('')
    with pytest.raises(DlmechError, match='table.csv is damaged'): study(tmp_path, counting([])).fill()


def test_keys_are_one_however_they_were_read():
    written = [dict(layers='4', fraction=.5, whole=True), dict(layers=4, fraction=.50, whole=True)]
    read = json.loads(json.dumps(written[0]))
    assert len({key_of(row, ['layers', 'fraction', 'whole']) for row in [*written, read]}) == 1
    many = [dict(seed=n) for n in (20240101, 20240102)]
    assert len({key_of(row, ['seed']) for row in many}) == 2
    other = dict(layers='4+5', fraction=.5, whole=True)
    assert key_of(other, ['layers']) != key_of(written[0], ['layers'])


def test_an_error_is_one_line_also_from_papermill():
    class PapermillError(Exception):
        ename, evalue = 'ParameterError', 'layer: there is none\nmore'
    assert describe_error(PapermillError()) == 'layer: there is none'
    assert describe_error(DlmechError('a\nb')) == 'a'
    assert describe_error(ValueError()) == 'ValueError: no reason given'
