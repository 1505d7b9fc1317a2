"A run's report: whole, self-contained, and what it says is what the tables say."
import re, subprocess, sys
from html.parser import HTMLParser

import pytest

from dlmech.cli import main
from dlmech.explore import open_finished
from dlmech.filter import filtered
from dlmech.model import start
import dlmech.report


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A small finished run with its report."
    r = start(arch='vgg6', dataset='digits', layer='all', d=2, epochs=1,
              runs=str(tmp_path_factory.mktemp('runs')))
    filtered(r, [4, 5])
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
        self.links += [v for k, v in attrs if k in ('href', 'src') and not v.startswith('data:')]
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
    table = open_finished(run.path).layer(5).table
    said = re.findall(r'<a href="5/(\d+)\.html">\d+</a></td><td>([^<]*)</td><td>([^<]*)</td><td>([^<]*)</td><td>([^<]*)</td>', (run.path/'report'/'index.html').read_text())
    assert [(int(f), float(c), float(l), float(n)) for f, _, c, l,
            n in said] == list(table[['filter', 'n_clusters', 'n_labels',
                                      'noise']].itertuples(index=False, name=None))


def test_a_report_that_fails_leaves_the_old_one(run, monkeypatch):
    before = (run.path/'report'/'index.html').read_text()
    def dies(*a): raise KeyboardInterrupt
    monkeypatch.setattr(dlmech.report, 'index_page', dies)
    with pytest.raises(KeyboardInterrupt): dlmech.report.report(open_finished(run.path))
    assert (run.path/'report'/'index.html').read_text() == before
    assert not list(run.path.glob('.report*'))


def test_no_finished_run_is_one_sentence(tmp_path, capsys):
    assert main(['report', str(tmp_path)]) == 2
    assert re.fullmatch(r'dlmech: .* is no finished run \(there is no config.json\); make one with '
                        r'papermill 03_filter.ipynb out.ipynb\n', capsys.readouterr().err)


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
        noise = lambda: [float(t) for t in page.locator('table').last.locator('tbody tr td:nth-child(5)').all_text_contents()]
        head = page.locator('table').last.locator('th', has_text='noise').first
        head.click()
        assert noise() == sorted(noise())
        head.click()
        assert noise() == sorted(noise(), reverse=True)
        browser.close()
