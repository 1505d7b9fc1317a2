"""The site: the code of its pages runs, notebooks and numbers are those of the house, no link leads nowhere.
.ci/run builds it first, and says where by DLMECH_SITE; else it is built here, without a warning."""
import os, re, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import dlmech
from helpers import find_chromium, NBS, run, TOP
from house import definitions, modules, public

DOCS = TOP/'docs'
HOWTO = {p.stem: p.read_text() for p in sorted((DOCS/'howto').glob('*.md'))}
RUN = [name for name, text in HOWTO.items() if '```python' in text]
LONG = 'sweep',  # processes that train
LOOKED_AT = ('index', 'notebooks/tutorial', 'notebooks/03_filter', 'api/pruning.prune', 'claims', 'glossary',
             'report', 'report/index', 'report/layer-7/filter-20')


def code_of(text: str) -> str:
    "The Python of a page, from top to bottom."
    return '\n'.join(re.findall(r'^```python\n(.*?)^```', text, re.M | re.S))


@pytest.mark.parametrize('name', RUN)
def test_the_code_of_a_howto_page_runs(name, tmp_path, monkeypatch):
    "In a folder of its own, as somebody would who copies it."
    if name in LONG and 'DLMECH_SLOW' not in os.environ: pytest.skip('minutes: asked for by DLMECH_SLOW=1')
    monkeypatch.chdir(tmp_path)
    exec(compile(code_of(HOWTO[name]), f'{name}.md', 'exec'), {'__name__': name})


def test_every_howto_page_is_listed_and_has_code():
    assert len(RUN) >= 6
    assert set(HOWTO) - {'index'} == set(RUN)
    assert {line for line in HOWTO['index'].splitlines() if line in HOWTO} == set(RUN)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The folder of the built site."
    if there := os.environ.get('DLMECH_SITE'): return Path(there)
    for package in ('myst_nb', 'furo', 'sphinx_copybutton', 'sphinx_design'):
        pytest.importorskip(package, reason='what the site is built with is not installed: dlmech[docs]')
    out = tmp_path_factory.mktemp('site')/'html'
    done = run(sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-b', 'html', DOCS, out, cwd=TOP)
    assert done.returncode == 0, done.stderr
    return out


class Page(HTMLParser):
    "What a page links to, what can be linked to in it, and its text."
    def __init__(self, path: Path):
        super().__init__()
        self.links, self.ids, self.text = [], {''}, []
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        "Links and pictures, anchors."
        for name, value in attrs:
            if name == 'id' or (name == 'name' and tag == 'a'): self.ids.add(value)
            elif name in ('href', 'src') and value is not None: self.links.append(value)

    def handle_data(self, data): self.text.append(data)


@pytest.fixture(scope='module')
def pages(site):
    "Every page of the site; of the report inside it the index, and of each layer its own and a filter's."
    left_out = 'report', '_static'
    own = [p for p in site.rglob('*.html') if p.relative_to(site).parts[0] not in left_out]
    inside = [p for name in ('*', '*/index', '*/filter-20') for p in site.glob(f'report/{name}.html')]
    return {p: Page(p) for p in own + inside}


def test_no_link_leads_nowhere(site, pages):
    "Files and anchors of the site; what lies outside of it has a protocol that a browser may be sent to."
    checked, wrong = 0, []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ('http', 'https', 'data', 'mailto'): continue
            target = (path.parent/unquote(parts.path)).resolve() if parts.path else path
            there = target.is_file() and (target not in pages or unquote(parts.fragment) in pages[target].ids)
            checked += 1
            if not there: wrong.append((path.relative_to(site).as_posix(), link))
    assert checked > 2000
    assert wrong == []


def test_a_report_of_the_best_network_lies_inside(site, pages):
    "Of its tables and images, which come with the package; with a page for each filter of some layers."
    m = dlmech.open('zoo:vgg16-cifar10-d64')
    layers = [int(p.parent.name.split('-')[1]) for p in site.glob('report/layer-*/index.html')]
    assert max(layers) == len(m.paths)
    for n in layers: assert len(list((site/'report'/f'layer-{n}').glob('filter-*.html'))) == len(m[n])
    assert 'report/index.html' in pages[site/'report.html'].links
    assert len([link for link in pages[site/'report'/'layer-7'/'filter-20.html'].links
                if link.endswith('.webp')]) == m[7].top['image'].shape[1]


def test_a_page_fetches_nothing_from_outside(pages):
    fetched = [(path.name, link) for path, page in pages.items() for link in page.links
               if re.match(r'(https?:)?//.*\.(js|css|png|svg|woff2?)\b', link)]
    assert fetched == []


def test_every_notebook_and_every_module_has_a_page(site, pages):
    for p in NBS.glob('*.ipynb'):
        if p.stem != 'index': assert (site/'notebooks'/f'{p.stem}.html') in pages, p.stem
    silent = []
    for name, tree in modules().items():
        if name == '__main__': continue  # a command, nothing to import
        ids, defined = pages[site/'api'/f'{name}.html'].ids, dict(definitions(tree))
        silent += [f'{name}.{f}' for f in set(public(tree)) & set(defined) if f'dlmech.{name}.{f}' not in ids]
    assert silent == []


def test_what_is_for_the_tool_is_not_shown(pages):
    shown = {path.name: text for path, page in pages.items() if path.parent.name == 'notebooks'
             for text in page.text if re.match(r'\s*#\|', text)}
    assert len([p for p in pages if p.parent.name == 'notebooks']) > 30
    assert shown == {}


def test_comments_beside_parameters_and_types_are_in_the_api(site, pages):
    page = pages[site/'api'/'pruning.prune.html']
    text = ' '.join(' '.join(page.text).split())
    assert 'what was measured of it, over training images' in text
    assert any(link.endswith('#dlmech.measurement.Measurement') for link in page.links)


def test_results_are_those_of_the_tables(site, pages):
    from dlmech.study.claims import CLAIMS, read_claims, tell
    told = tell(read_claims())
    text = ' '.join(' '.join(pages[site/'claims.html'].text).split())
    for row in told.itertuples(): assert f'{row.network} {row.data} {row.finding} {row.measured}' in text
    assert len(told) > 30
    assert len(CLAIMS) > 8


@pytest.mark.parametrize('width', [1280, 390])
def test_a_browser_shows_it(site, width):
    "Nothing is wider than the screen, no error, nothing asked of another machine, by day and by night."
    from playwright.sync_api import sync_playwright
    path, complaints = find_chromium(), []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=['--no-sandbox'])
        for scheme in ('light', 'dark'):
            page = browser.new_page(viewport=dict(width=width, height=900), color_scheme=scheme)
            page.on('console', lambda m: complaints.append(m.text) if m.type == 'error' else None)
            page.on('pageerror', lambda e: complaints.append(str(e)))
            page.on('request', lambda r: r.url.startswith(('file:', 'data:')) or complaints.append(r.url))
            for name in LOOKED_AT:
                page.goto(f'file://{site}/{name}.html')
                assert page.evaluate('document.documentElement.scrollWidth') <= width, (name, scheme)
            page.close()
        browser.close()
    assert complaints == []
