"A run's report: whole, self-contained, and what it says is what the tables say."
import re, subprocess, sys
from html.parser import HTMLParser

import pytest

import dlmech, dlmech.look.report, dlmech.measurement
from dlmech.arch import get_model
from dlmech.causal import causal
from dlmech.cli import main
from dlmech.datasets import get_data
from dlmech.measurement import measure_run
from dlmech.model import start
from dlmech.run import DlmechError


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A small finished run with its report."
    r = start(arch='vgg6', dataset='digits', layer='all', d=2, epochs=1,
              runs=str(tmp_path_factory.mktemp('runs')))
    measure_run(r, [4, 5])
    done = subprocess.run([sys.executable, '-c',
                           'import sys; from dlmech.cli import main; sys.exit(main(sys.argv[1:]))', 'report',
                           str(r.path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(r.path/'report'/'index.html'), done.stderr
    assert 'report:' in done.stderr                                                      # the progress bar
    return r


class Links(HTMLParser):
    "Where a page points to, and whether its tags are closed."
    def __init__(self, text):
        super().__init__()
        self.links, self.open, self.scripts = [], [], []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ('href', 'src') and v and not v.startswith('data:')]
        if tag == 'script': self.scripts.append(dict(attrs))
        if tag not in ('img', 'meta', 'br'): self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop() == tag, tag


def test_every_filter_has_a_page_and_every_link_a_target(run):
    folder = run.path/'report'
    assert {p.relative_to(folder).as_posix() for p in folder.rglob('*.*')} == {'index.html',
                                                                               *(f'{n}/{f}.html'
                                                                                 for n in (4, 5)
                                                                                 for f in range(16))}
    for p in folder.rglob('*.html'):
        page = Links(p.read_text())
        assert not page.open
        for link in page.links:
            name, _, at = link.partition('#')
            target = p.parent/name if name else p
            assert target.is_file(), (p, link)
            assert (not at or f'id="{at}"' in target.read_text()), (p, link)
        assert page.scripts == ([{}] if p.name == 'index.html' else [])


def test_it_says_what_the_tables_say(run):
    table = dlmech.open(run.path)[5].filters
    cell = r'<td>([^<]*)</td>'
    index = (run.path/'report'/'index.html').read_text()
    said = re.findall(rf'<a href="5/(\d+)\.html">\d+</a></td>{cell*4}', index)
    columns = table[['filter', 'n_clusters', 'n_labels', 'noise']]
    assert len(said) == 16
    assert [(int(f), float(found), float(labels), float(noise))
            for f, _, found, labels, noise in said] == list(columns.itertuples(index=False, name=None))


def test_a_report_that_fails_leaves_the_old_one(run, monkeypatch):
    before = (run.path/'report'/'index.html').read_text()
    def dies(*a): raise KeyboardInterrupt
    monkeypatch.setattr(dlmech.look.report, 'index_page', dies)
    with pytest.raises(KeyboardInterrupt): dlmech.report(dlmech.open(run.path))
    assert (run.path/'report'/'index.html').read_text() == before
    assert not list(run.path.glob('.report*'))


def test_no_finished_run_is_one_sentence(tmp_path, capsys):
    assert main(['report', str(tmp_path)]) == 2
    assert re.fullmatch(r'dlmech: .* is no finished run \(there is no config.json\); make one with '
                        r'papermill 03_filter.ipynb out.ipynb\n', capsys.readouterr().err)


def test_without_its_data_set_a_run_keeps_its_report_and_says_why(run, monkeypatch):
    before = (run.path/'report'/'5'/'0.html').read_text()
    def missing(*a, **k): raise DlmechError('dataset: it is not here')
    monkeypatch.setattr(dlmech.measurement, 'get_data', missing)
    with pytest.raises(DlmechError, match='it is not here'): dlmech.report(dlmech.open(run.path))
    assert (run.path/'report'/'5'/'0.html').read_text() == before


def test_a_measurement_of_ones_own_has_a_report_where_one_says(tmp_path):
    data = get_data('digits', labels=[0, 3, 7])
    m = dlmech.measure(get_model('vgg6', 3, d=2), data.train, data.test, layers='layers.5', heads='ridge')
    with pytest.raises(DlmechError, match='save it first, or name one'): dlmech.report(m)
    index = dlmech.report(m, tmp_path/'of memory')
    assert index == tmp_path/'of memory'/'index.html'
    assert (tmp_path/'of memory'/'5'/'15.html').read_text().count('data:image/png') == 2
    saved = dlmech.report(dlmech.open(m.save(tmp_path/'mine')))
    assert saved == tmp_path/'mine'/'report'/'index.html'
    assert saved.read_text() == index.read_text()
    page = (tmp_path/'mine'/'report'/'5'/'15.html').read_text()
    assert page.count('data:image/png') == 1
    assert 'holds no images' in page


def test_a_filter_that_was_silenced_shows_what_the_network_loses(tmp_path):
    data = get_data('digits', labels=[0, 3, 7])
    m = dlmech.measure(get_model('vgg6', 3, d=2), data.train, data.test, layers=['layers.4', 'layers.5'],
                       heads='ridge')
    folder = m.save(tmp_path/'mine')
    again = dlmech.open(folder, m.net, data.test)
    table = causal(again[5], data.train, 30, 'training images')
    dlmech.report(again)
    pages = {n: (folder/'report'/str(n)/'3.html').read_text() for n in (4, 5)}
    assert 'Not silenced in the network yet: <code>dlmech.causal.causal(m[4])</code>' in pages[4]
    assert pages[4].count('data:image/png') == 2
    assert pages[5].count('data:image/png') == 3
    lost = m.names[table.fall_label[3]]
    assert f'Without it {lost} loses most: its log-probability falls by {table.fall[3]:.3g} ' in pages[5]
    assert '(30 training images)' in pages[5]


def test_the_table_sorts_in_a_browser(run):
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    import shutil
    path = shutil.which('chromium')
    if not path: pytest.skip('there is no chromium')
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path,
                                       args=['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'])
        page = browser.new_page(viewport=dict(width=1280, height=1000))
        page.goto((run.path/'report'/'index.html').as_uri())
        table = page.locator('table').last
        noise = lambda: [float(t) for t in table.locator('tbody tr td:nth-child(5)').all_text_contents()]
        head = table.locator('th', has_text='noise').first
        head.click()
        assert noise() == sorted(noise())
        head.click()
        assert noise() == sorted(noise(), reverse=True)
        browser.close()
