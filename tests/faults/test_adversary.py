"""Files from somebody who means harm, or in the place of others: a report's own list, a sweep's YAML, links;
and a command that is stopped, or whose output nobody takes. `test_hostile.py` has pictures, names, pages."""
import errno, json, os, threading
from contextlib import redirect_stdout

import pytest

import dlmech, dlmech.__main__, dlmech.cli
from dlmech.cli import main
from dlmech.look.report import check_place, files_of_report, whole_folder
from dlmech.run import DlmechError, ParameterError
from dlmech.study.sweeps import MOST_VALUES, plan_rows, read_sweep, run_sweep, SweepFile
from helpers import linked_net


def pages(folder, *names: str) -> None:
    "Writes pages of a report that hold their own names."
    for name in names:
        (folder/name).parent.mkdir(exist_ok=True)
        (folder/name).write_text(name, encoding='utf-8')


# ---- a report

def test_a_list_of_a_report_deletes_nothing_outside_of_it(tmp_path):
    "A folder of a run from elsewhere may hold a list that names what is dear to somebody here."
    dear, site = tmp_path/'dear.txt', tmp_path/'run'/'report'
    pages(tmp_path, 'dear.txt')
    with whole_folder(site) as f: pages(f, 'index.html', 'layer-1/filter-0.html', 'layer-1/filter-1.html')
    pages(site, 'notes.txt')
    named = ['../../dear.txt', str(dear), 'layer-1/../../../dear.txt', 'notes.txt', 'layer-1/filter-1.html']
    (site/'.report.json').write_text(json.dumps(['index.html', 'layer-1/filter-0.html', *named]))
    with whole_folder(site) as f: pages(f, 'index.html', 'layer-1/filter-0.html')
    assert dear.exists()
    assert (site/'notes.txt').exists()
    assert not (site/'layer-1'/'filter-1.html').exists()
    assert files_of_report(site) == {'index.html', 'layer-1/filter-0.html'}


def test_a_link_in_the_place_of_a_reports_folder_is_refused(tmp_path):
    dear, site = tmp_path/'dear', tmp_path/'report'
    pages(dear.parent, 'dear/index.html')
    site.mkdir()
    (site/'layer-1').symlink_to(dear)
    (site/'.report.json').write_text(json.dumps(['layer-1/index.html']))
    with pytest.raises(DlmechError, match='layer-1 is a link where a folder should be; remove it'):
        with whole_folder(site) as f: pages(f, 'index.html')
    assert (dear/'index.html').read_text() == 'dear/index.html'


@pytest.mark.parametrize('there', [False, True])
def test_reports_that_come_to_one_place_at_once_lose_nothing(tmp_path, there):
    site, together, wrong = tmp_path/'report', threading.Barrier(4), []
    if there:
        with whole_folder(site) as f: pages(f, 'index.html', 'layer-9/index.html')
    def write(n):
        try:
            with whole_folder(site) as f:
                pages(f, 'index.html', f'layer-{n}/index.html')
                together.wait(60)
        except Exception as e: wrong.append(e)
    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for t in threads: t.start()
    for t in threads: t.join(120)
    assert wrong == []
    found = {p.relative_to(site).as_posix() for p in site.rglob('*.html')}
    assert len(found) == 2                      # the last one's; what it found of the others is gone
    assert files_of_report(site) == found
    check_place(site)
    assert [p.name for p in tmp_path.iterdir()] == ['report']


def test_a_report_that_the_disk_does_not_take_is_a_sentence_and_leaves_nothing(tmp_path):
    with pytest.raises(DlmechError, match='report: the disk is full; make room'):
        with whole_folder(tmp_path/'report') as f:
            pages(f, 'index.html')
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(f/'layer-1'/'index.html'))
    with pytest.raises(DlmechError, match='the name is too long'):
        with whole_folder(tmp_path/('x' * 300)): pass
    assert list(tmp_path.iterdir()) == []


def test_a_report_lies_where_it_was_asked_for_whatever_the_name(tmp_path, monkeypatch):
    name = "we'ird \"x\" ; $(touch hacked) %s & <b> 🎉 größe [a-z]*?"
    monkeypatch.chdir(tmp_path)
    net, data = linked_net()
    m = dlmech.measure(net, data, data, heads='ridge', layers='6')
    for _ in range(2): assert dlmech.report(m, name) == tmp_path/name/'index.html'
    assert [p.name for p in tmp_path.iterdir()] == [name]


# ---- a command

def test_an_output_that_takes_nothing_is_a_sentence(capsys):
    if not os.path.exists('/dev/full'): pytest.skip('there is no /dev/full')
    for words in ['zoo'], ['--version']:
        full = open('/dev/full', 'w', encoding='utf-8')
        with redirect_stdout(full): assert main(words) == 2
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # so that it can be closed
        full.close()
        said = 'dlmech: a disk takes no more (No space left on device); make room, or write to another\n'
        assert capsys.readouterr().err == said


def test_a_key_that_stops_it_while_it_is_still_read_is_a_line_too(monkeypatch, capsys):
    def stop(): raise KeyboardInterrupt
    monkeypatch.setattr(dlmech.cli, 'main', stop)
    assert dlmech.__main__.main() == 130
    assert capsys.readouterr().err == 'dlmech: stopped; what was finished is kept\n'


# ---- a sweep's file

NONE = 'file.yaml is no YAML: '
BOMB = 'a0: &a0 [x, x]\n' + ''.join(f'a{i}: &a{i} [{", ".join([f"*a{i-1}"] * 9)}]\n' for i in range(1, 12))
WRONG = {
    'bomb': (BOMB, f'file.yaml: it means more than {MOST_VALUES:,} values'),
    'itself': ('parameters: &p {runs: *p}', f'file.yaml: it means more than {MOST_VALUES:,} values'),
    'deep': ('[' * 1500, NONE), 'date': ('cross: {seed: [2001-99-99]}', NONE),
    'timestamp': ('!!timestamp x', NONE),
    'tag': ('!!python/object/apply:os.system ["touch hacked"]', NONE),
    'bytes': (b'cross: {seed: [\xff]}', NONE),
    'twice': ('cross: {seed: [0, 1], seed: [2]}', f'{NONE}seed is there twice'),
    'twice again': ('cross: {seed: [0]}\nrows: []\ncross: {d: [2]}', f'{NONE}cross is there twice'),
    'many': (f'cross: {{seed: {list(range(400))}, d: {list(range(1, 301))}}}',
             'sweep: 120,000 runs are too many'),
    'outside': ('table: {../../config.json: [K]}', "table: '../../config.json' is not possible"),
    'elsewhere': ('table: {/etc/passwd.csv: [root]}', "table: '/etc/passwd.csv' is not possible"),
    'runs': ('parameters: {runs: 3}', 'runs: 3 is no path'),
    'data': ('parameters: {dataset: "folder:a\\0"}', 'dataset: '),
    'notebook': ('notebook: "a\\0.ipynb"', "notebook: 'a\\x00.ipynb' is no path"),
    'weights': ('parameters: {weights: [a]}', "weights: ['a'] is no path")}


@pytest.mark.parametrize('name', WRONG)
def test_a_sweeps_file_that_means_harm_is_refused_in_a_sentence(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    text, said = WRONG[name]
    (tmp_path/'file.yaml').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ParameterError) as e: run_sweep(tmp_path/'file.yaml')
    assert str(e.value).startswith(said)
    assert '\n' not in str(e.value)
    assert len(str(e.value)) < 1000
    assert [p.name for p in tmp_path.iterdir()] == ['file.yaml']


def test_aliases_and_defaults_of_yaml_may_be_used(tmp_path):
    text = 'rows: [&a {arch: vgg6, d: 2}, {<<: *a, d: 4}]\ncross: {seed: &s [0, 1]}\n'
    (tmp_path/'file.yaml').write_text(text)
    s = read_sweep(tmp_path/'file.yaml')
    assert s.rows == [dict(arch='vgg6', d=2), dict(arch='vgg6', d=4)]
    assert len(plan_rows(s)) == 4
    assert len(plan_rows(SweepFile(cross=dict(seed=list(range(3000)))))) == 3000
