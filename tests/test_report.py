"A report: whole, self-contained, what it says is what the tables say, and it works in a real browser."
import json, re, subprocess, sys
from html.parser import HTMLParser

import pandas as pd, pytest, torch
from torch import nn

import dlmech, dlmech.look.report, dlmech.measurement
from dlmech.arch import get_model
from dlmech.causal import causal
from dlmech.cli import main
from dlmech.datasets import get_data
from dlmech.look.glossary import GLOSSARY
from dlmech.measurement import measure_run
from dlmech.model import start
from dlmech.run import _HERE, DlmechError, ParameterError
from helpers import find_chromium


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A small finished run, a layer of it silenced, with its report."
    r = start(arch='vgg6', dataset='digits', layer='all', d=2, epochs=1,
              runs=str(tmp_path_factory.mktemp('runs')))
    causal(measure_run(r, [4, 5])[5], n=30)
    done = subprocess.run([sys.executable, '-c',
                           'import sys; from dlmech.cli import main; sys.exit(main(sys.argv[1:]))', 'report',
                           str(r.path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(r.path/'report'/'index.html'), done.stderr
    assert 'report:' in done.stderr                                                      # the progress bar
    return r


@pytest.fixture(scope='module')
def mine(tmp_path_factory):
    "A measurement of three labels, in memory, and where it is saved."
    data = get_data('digits', labels=[0, 3, 7])
    m = dlmech.measure(get_model('vgg6', 3, d=2), data.train, data.test, layers='layers.5', heads='ridge')
    return m, m.save(tmp_path_factory.mktemp('mine')/'mine')


VOID = 'img meta br link input'.split()


class Page(HTMLParser):
    "Where a page points to, and whether its tags are closed."
    def __init__(self, text):
        super().__init__()
        self.links, self.open, self.scripts = [], [], []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ('href', 'src') and v and not v.startswith('data:')]
        if tag == 'script': self.scripts.append(dict(attrs).get('src'))
        if tag not in VOID: self.open.append(tag)
    def handle_endtag(self, tag):
        if tag not in VOID: assert self.open.pop() == tag, tag


def names_of(folder): return {p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file()}


# ---- what is written

def test_every_filter_has_a_page_and_every_link_a_target(run):
    folder = run.path/'report'
    html = {name for name in names_of(folder) if name.endswith('.html')}
    assert html == {'index.html', 'glossary.html', *(f'layer-{n}/{page}.html' for n in (4, 5) for page in (
        'index', *(f'filter-{f}' for f in range(16))))}
    texts = {name: (folder/name).read_text() for name in html}
    for name, text in texts.items():
        page = Page(text)
        assert not page.open
        assert page.links
        for link in page.links:
            there, _, at = link.partition('#')
            target = (folder/name).parent/there.partition('?')[0] if there else folder/name
            assert target.is_file(), (name, link)
            if at: assert f'id="{at}"' in target.read_text(), (name, link)


def test_nothing_is_fetched_from_outside_and_nothing_else_may_run(run):
    for p in (run.path/'report').rglob('*.*'):
        if p.suffix in ('.html', '.css', '.js'): assert '://' not in p.read_text(), p
        if p.suffix != '.html': continue
        assert "default-src 'none'" in p.read_text()
        assert [s.rpartition('/')[2] for s in Page(p.read_text()).scripts] == ['terms.js', 'report.js']
        assert not re.search(r'<[^>]+ (style|on\w+)=', p.read_text())       # which the policy would not allow


def test_it_says_what_the_tables_say(run):
    m = dlmech.open(run.path)
    said = re.findall(r'<tr data-f="(\d+)" data-l="(\d+)" data-c="([^"]*)"[^>]*>.*?</th>(.*?)</tr>',
                      (run.path/'report'/'index.html').read_text())
    assert len(said) == 32
    for f, n, clusters, cells in said:
        row = m[int(n)].filters.iloc[int(f)]
        _, labels, _, noise, _, q, _ = re.findall('<td[^>]*>(.*?)</td>', cells)
        assert clusters.replace('|', ' ') == row['labels']
        assert float(labels) == row.n_labels
        assert float(noise) == row.noise
        assert float(q) == pytest.approx(row.q_value, rel=1e-3)


def test_the_most_telling_come_first_by_evidence(run):
    table = pd.read_csv(run.path/'report'/'data'/'filters.csv').sort_values('rank')
    loud = table.max_field >= table.groupby('layer').max_field.transform('median')
    first = (table.q_value <= .05) & loud
    assert first.is_monotonic_decreasing
    assert 0 < first.sum() < len(table)
    spread = table.excess / (table.n_labels - table.excess)**.5
    for group in first, ~first: assert spread[group].dropna().is_monotonic_decreasing
    index = (run.path/'report'/'index.html').read_text()
    first = re.findall(r'<tr data-f="(\d+)" data-l="(\d+)"', index)
    assert [(int(f), int(n)) for f, n in first] == list(zip(table['filter'], table.layer))


def test_the_data_are_the_tables_in_every_format(run):
    folder, m = run.path/'report'/'data', dlmech.open(run.path)
    csv = pd.read_csv(folder/'filters.csv')
    assert csv[csv.layer == 5].noise.tolist() == m[5].filters.noise.tolist()
    assert pd.DataFrame(json.loads((folder/'filters.json').read_text())).noise.tolist() == csv.noise.tolist()
    fields = pd.read_csv(folder/'fields.csv').filter(like='output_').to_numpy().ravel()
    assert fields == pytest.approx(torch.cat([m[4].fields, m[5].fields]).flatten().numpy(), rel=1e-6)
    if (folder/'filters.parquet').exists():
        assert pd.read_parquet(folder/'filters.parquet').noise.tolist() == csv.noise.tolist()


def test_every_word_is_explained(run):
    text = (run.path/'report'/'glossary.html').read_text()
    assert text.count('<dt id=') == len(GLOSSARY)
    assert "What a filter alone puts on an output unit: the head&#39;s weights" in text


def test_a_filter_that_was_silenced_shows_what_the_network_loses(run):
    m = dlmech.open(run.path)
    table = causal(m[5], n=30)
    pages = {n: (run.path/'report'/f'layer-{n}'/'filter-3.html').read_text() for n in (4, 5)}
    assert 'Not silenced in the network yet: <code>dlmech.causal.causal(m[4])</code>' in pages[4]
    assert 'causal AUC' not in pages[4]
    lost = m.names[table.fall_label[3]]
    assert f'without it {lost} loses most, its log-probability falls by {table.fall[3]:.3g}.' in pages[5]
    assert '(30 training images)' in pages[5]
    assert 'maps of this layer are 1 x 1' in pages[5]
    assert 'id="maps"' in pages[4]


def test_layers_are_chosen_by_number_and_path(run, tmp_path):
    m = dlmech.open(run.path)
    for i, layers in enumerate(['5', 'layers.5', [5], 5, '5,layers.5']):
        index = dlmech.report(m, tmp_path/str(i), layers=layers)
        assert {p.name for p in index.parent.glob('layer-*')} == {'layer-5'}
    for wrong in (3, 'layers.3', '5,17', 'abc', 1.5, ''):
        with pytest.raises(ParameterError, match='^layers?: '): dlmech.report(m, tmp_path/'x', layers=wrong)
    assert not (tmp_path/'x').exists()


def wide(K):
    "A network and images of K labels."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(),
                        nn.Linear(12, K))
    return net, (torch.randn(K, 3, 8, 8), torch.arange(K))


def test_of_many_labels_pages_stay_small(tmp_path):
    net, images = wide(300)
    m = dlmech.measure(net, images, images, layers='0', heads='ridge')
    page = dlmech.report(m, tmp_path/'r', layers=['0']).parent/'layer-1'/'filter-0.html'  # a path
    assert page.stat().st_size < 40_000
    assert 'clusters first, 20 of 300 labels' in page.read_text()
    assert page.read_text().count('<tr') < 60


# ---- where it is written

def test_a_report_that_fails_leaves_the_old_one(run, monkeypatch):
    before = (run.path/'report'/'index.html').read_text()
    def dies(*a): raise KeyboardInterrupt
    monkeypatch.setattr(dlmech.look.report, 'index_page', dies)
    with pytest.raises(KeyboardInterrupt): dlmech.report(dlmech.open(run.path))
    assert (run.path/'report'/'index.html').read_text() == before
    assert not list(run.path.glob('.report*'))


def test_what_a_killed_one_left_is_taken_away(mine, tmp_path):
    left = tmp_path/f'.r.{_HERE}-999999999-01234567.part'
    other = tmp_path/'.r.000000-999999999-01234567.part'  # of another machine
    for folder in (left, other): (folder/'layer-5').mkdir(parents=True)
    dlmech.report(mine[0], tmp_path/'r')
    assert not left.exists()
    assert other.exists()


def test_a_second_report_replaces_its_own_files_and_no_others(mine, tmp_path):
    m, out = mine[0], tmp_path/'r'
    dlmech.report(m, out)
    (out/'notes.txt').write_text('mine')
    stale = out/'layer-5'/'filter-99.html'
    stale.write_text('')
    (out/'.report.json').write_text(json.dumps([*json.loads((out/'.report.json').read_text()),
                                                'layer-5/filter-99.html']))
    (out/'index.html').write_text('old')
    dlmech.report(m, out)
    assert (out/'notes.txt').read_text() == 'mine'
    assert 'Most telling' in (out/'index.html').read_text()
    assert not stale.exists()
    listed = {*json.loads((out/'.report.json').read_text())}
    assert listed == names_of(out) - {'notes.txt', '.report.json', '.lock'}


@pytest.mark.parametrize('name', ['index.html', 'layer-5/filter-3.html', 'data/filters.csv'])
def test_a_file_of_somebody_elses_is_not_overwritten(mine, tmp_path, name):
    (tmp_path/name).parent.mkdir(exist_ok=True)
    (tmp_path/name).write_text('mine')
    with pytest.raises(DlmechError, match=f'holds {name}, which no report wrote; move it away'):
        dlmech.report(mine[0], tmp_path)
    assert names_of(tmp_path) == {name}
    assert (tmp_path/name).read_text() == 'mine'


def test_the_report_of_an_older_version_is_replaced(mine, tmp_path):
    (tmp_path/'5').mkdir()
    for old in ('index.html', '5/0.html'): (tmp_path/old).write_text('old')
    dlmech.report(mine[0], tmp_path)
    assert not (tmp_path/'5').exists()
    assert 'Most telling' in (tmp_path/'index.html').read_text()


def test_no_finished_run_is_one_sentence(tmp_path, capsys):
    assert main(['report', str(tmp_path)]) == 2
    assert re.fullmatch(r'dlmech: .* is no finished run \(there is no config.json\); make one with '
                        r'papermill 03_filter.ipynb out.ipynb\n', capsys.readouterr().err)


def test_without_its_data_set_a_run_keeps_its_report_and_says_why(run, monkeypatch):
    before = (run.path/'report'/'layer-5'/'filter-0.html').read_text()
    def missing(*a, **k): raise DlmechError('dataset: it is not here')
    for module in dlmech.measurement, dlmech.model:
        for name in 'get_data', 'get_test': monkeypatch.setattr(module, name, missing, raising=False)
    with pytest.raises(DlmechError, match='it is not here'): dlmech.report(dlmech.open(run.path))
    assert (run.path/'report'/'layer-5'/'filter-0.html').read_text() == before


def test_a_measurement_of_ones_own_has_a_report_where_one_says(mine, tmp_path):
    m, folder = mine
    with pytest.raises(DlmechError, match='save it first, or name one with out'): dlmech.report(m)
    index = dlmech.report(m, tmp_path/'of memory')
    assert index == tmp_path/'of memory'/'index.html'
    assert (tmp_path/'of memory'/'layer-5'/'filter-15.html').read_text().count('.webp"') == 8
    saved = dlmech.report(dlmech.open(folder))
    assert saved == folder/'report'/'index.html'
    assert saved.read_text() == index.read_text()
    page = (folder/'report'/'layer-5'/'filter-15.html').read_text()
    assert '.webp' not in page
    assert 'holds no images' in page


# ---- two runs

def test_against_itself_at_another_threshold_it_lists_what_changed(run, tmp_path):
    m, strict = dlmech.open(run.path), start(arch='vgg6', dataset='digits', layer='all', d=2, epochs=1,
                                             threshold=.6, runs=str(run.path.parent))
    other = measure_run(strict, [4, 5])
    text = (dlmech.report(m, tmp_path/'r', against=other).parent/'changes.html').read_text()
    labels = {n: [[{*t['labels'].iloc[f].split()} for t in (m[n].filters, other[n].filters)]
                  for f in range(16)] for n in (4, 5)}
    changed = [(f, n) for n, pairs in labels.items() for f, (a, b) in enumerate(pairs) if a != b]
    assert changed
    said = re.findall(r'<tr data-f="(\d+)" data-l="(\d+)"', text)
    assert [(int(f), int(n)) for f, n in said] == changed
    assert f'{len(changed)} of 32 filters have other labels' in text
    table = pd.read_csv(tmp_path/'r'/'data'/'changes.csv', dtype=str, keep_default_na=False)
    lost = [{*t.split()} for t in table.lost]
    assert lost == [a - b for pairs in labels.values() for a, b in pairs]
    assert 'href="changes.html"' in (tmp_path/'r'/'index.html').read_text()


def test_runs_that_have_no_filter_in_common_are_refused_in_a_sentence(run, mine, tmp_path):
    m, data = dlmech.open(run.path), get_data('digits')
    wider = dlmech.measure(get_model('vgg6', 10, d=3), data.train, data.test, layers='layers.5',
                           heads='ridge')
    other, narrow = mine[0], dlmech.open(mine[1])
    narrow.names = m.names
    for against, layers, why in ((other, None, 'has other labels than'), (wider, [5], 'has 16 filters in'),
                                 (wider, None, r'has no layer 4 \(layers.4\); measured there are 5')):
        with pytest.raises(DlmechError, match=f'^against: .*{why}'):
            dlmech.report(m, tmp_path/'r', layers, against)
    with pytest.raises(ParameterError, match='^against: .* is no measurement'):
        dlmech.report(m, tmp_path/'r', against=str(run.path))
    assert not (tmp_path/'r').exists()


# ---- in a browser

@pytest.fixture(scope='module')
def chromium():
    path = find_chromium()
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path,
                                       args=['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, run):
    "Opens a page of the report; whatever the browser complains of fails the test."
    complaints, contexts = [], []
    def visit(name, width=1280, scheme='light'):
        contexts.append(chromium.new_context(viewport=dict(width=width, height=900), color_scheme=scheme))
        contexts[-1].set_default_timeout(60_000)
        page = contexts[-1].new_page()
        page.on('console', lambda said: complaints.append(said.text))
        page.on('pageerror', lambda e: complaints.append(str(e)))
        page.on('requestfailed', lambda r: complaints.append(r.url))
        path, _, at = name.partition('#')
        page.goto(f"{(run.path/'report'/path).as_uri()}#{at}")
        return page
    yield visit
    for context in contexts: context.close()
    assert complaints == []


PAGES = 'index.html', 'layer-4/index.html', 'layer-4/filter-3.html', 'layer-5/filter-3.html', 'glossary.html'


def shown(page): return page.locator('#filters tbody tr:visible')


def test_a_column_sorts_by_mouse_and_keyboard_and_says_so(visit):
    page = visit('layer-5/index.html')
    head = page.locator('#filters th', has=page.get_by_role('button', name='n', exact=True))
    at = head.evaluate('th => th.cellIndex')
    cells = page.locator(f'#filters tbody tr > :nth-child({at+1})')
    noise = lambda: [float(t) for t in cells.all_text_contents()]
    head.get_by_role('button').click()
    assert noise() == sorted(noise())
    assert head.get_attribute('aria-sort') == 'ascending'
    head.get_by_role('button').focus()
    page.keyboard.press('Enter')
    assert noise() == sorted(noise(), reverse=True)
    assert head.get_attribute('aria-sort') == 'descending'
    assert page.locator('[aria-sort]').count() == 1
    assert 'sorted by n, descending; 16 rows' in page.get_by_role('status').text_content()


def test_labels_clusters_numbers_and_layers_are_found(visit, run):
    m = dlmech.open(run.path)
    page = visit('index.html')
    search = page.get_by_role('searchbox')
    rows = [(n, row) for n in (4, 5) for row in m[n].filters.itertuples()]
    with_label = [r for r in rows if '3' in r[1].labels.split() or r[1].filter == 3]
    search.fill('3')
    assert shown(page).count() == len(with_label) > 0
    pair = next(c for _, r in rows for c in dlmech.run.clusters_of(r) if len(c) > 1)
    search.fill('+'.join(m.names[i] for i in pair))
    together = [r for _, r in rows if any({*pair} <= {*c} for c in dlmech.run.clusters_of(r))]
    assert shown(page).count() == len(together) > 0
    search.fill('no such label')
    assert shown(page).count() == 0
    assert page.get_by_role('status').text_content() == '0 rows'
    search.fill('')
    page.locator('select[name=layer]').select_option('4')
    assert shown(page).count() == 16


def test_a_filters_clusters_lead_to_others_with_them(visit, run):
    f = next(r.filter for r in dlmech.open(run.path)[5].filters.itertuples() if r.n_clusters)
    page = visit(f'layer-5/filter-{f}.html#cluster-0')
    assert page.locator('#cluster-0').is_visible()
    page.locator('#cluster-0').get_by_role('link', name='others with').click()
    page.wait_for_url('**?q=*')
    page.locator(f'#filters tbody tr[data-l="5"][data-f="{f}"]').wait_for(state='visible')


def test_arrow_keys_go_from_filter_to_filter(visit):
    page = visit('layer-5/filter-3.html')
    page.keyboard.press('ArrowRight')
    page.wait_for_url('**/filter-4.html')
    page.keyboard.press('ArrowLeft')
    page.wait_for_url('**/filter-3.html')
    page.get_by_role('link', name='4', exact=True).click()
    page.wait_for_url('**/layer-4/index.html')


def test_the_theme_is_the_systems_until_it_is_chosen_and_then_remembered(visit):
    back = 'getComputedStyle(document.body).backgroundColor'
    page = visit('index.html', scheme='dark')
    dark = page.evaluate(back)
    page.get_by_role('button', name='light or dark').click()
    light = page.evaluate(back)
    assert light != dark
    page.goto(page.url.replace('index.html', 'glossary.html'))
    assert page.evaluate(back) == light
    assert visit('index.html', scheme='light').evaluate(back) == light


SIZES = '''() => [...document.querySelectorAll('main *, header *')]
    .filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()))
    .filter(e => e.getClientRects().length)
    .map(e => parseFloat(getComputedStyle(e).fontSize) * (e.getScreenCTM && e.ownerSVGElement
              ? Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b) : 1))'''


@pytest.mark.parametrize('name', PAGES)
def test_a_page_fits_a_phone_and_no_text_is_smaller_than_eight_points(visit, name):
    for width in (1280, 360):
        page = visit(name, width)
        assert page.evaluate('document.documentElement.scrollWidth') <= width
        sizes = page.evaluate(SIZES)
        assert len(sizes) > 20
        assert min(sizes) >= 8 * 96/72 - .01


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('name', PAGES)
def test_axe_finds_nothing_serious(visit, name, scheme):
    axe = pytest.importorskip('axe_playwright_python.sync_playwright',
                              reason='axe-playwright-python is not installed, so nobody looks for barriers')
    page = visit(name, scheme=scheme)
    found = axe.Axe().run(page, options=dict(preload=False)).response['violations']
    told = [(v['id'], v['impact'], [n['html'][:200] for n in v['nodes'][:3]]) for v in found]
    assert [t for t in told if t[1] in ('serious', 'critical')] == []
