"What somebody else's files, names and folders can do: nothing but be read, shown, or refused in a sentence."
import html as html_text, io, json, re, shlex, subprocess, tracemalloc
from pathlib import Path

import matplotlib.pyplot as plt, numpy as np, pytest
from PIL import Image

import dlmech
from dlmech.cli import main
from dlmech.datasets import FORMATS, MOST_PIXELS, MOST_SIDE, read_image, scaled_size
from dlmech.figures import card_figure, filter_figure, layer_figure
from dlmech.look.views import (as_png, causal_view, filter_view, image_view, images_view, silenced_view,
                               uploaded)
from dlmech.measurement import command
from dlmech.run import DlmechError, Parameters
from helpers import blobs, find_chromium, small_net

EVIL = ['<script>alert(1)</script>', '"><img src=x onerror=alert(2)>', r'$\frac{$', "$5 & '$6'"]


@pytest.fixture(scope='module')
def measured():
    "A measurement whose labels are what nobody would call a label."
    return dlmech.measure(small_net(), blobs(80, 4), blobs(80, 4, 1), names=EVIL, heads='ridge', layers='5')


def of_digits(*names: str) -> dlmech.Measurement:
    "A network and images of the package's own, its labels so named."
    data, K = dlmech.data('digits', labels=len(names)), len(names)
    return dlmech.measure(dlmech.network('vgg6', K, d=2), data.train, data.test, layers='layers.5',
                          heads='ridge', names=names)


# ---- pictures

@pytest.mark.parametrize('w, h', [(1_000_000, 1), (1, 1_000_000), (13_000, 13_000), (60_000, 30)])
def test_a_picture_that_asks_for_gigabytes_is_refused_before_it_is_decoded(w, h):
    out = io.BytesIO()
    Image.new('1', (w, h)).save(out, 'png')
    tracemalloc.start()
    with pytest.raises(DlmechError, match='it has .* pixels; a side may have up to 32,768'):
        read_image(io.BytesIO(out.getvalue()), 32, 'evil.png')
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()


def test_pictures_within_the_limits_are_scaled():
    assert scaled_size(6000, 8000, 224) == (224, 299)
    side = int(MOST_PIXELS ** .5)
    assert scaled_size(side, side, 32) == (32, 32)
    for w, h, size in ((side + 1, side + 1, 32), (MOST_SIDE + 1, 9000, 32), (20_000, 1, 224)):
        with pytest.raises(DlmechError, match='up to'): scaled_size(w, h, size)


def test_postscript_is_not_handed_to_ghostscript(tmp_path, monkeypatch):
    def called(*a, **k): raise AssertionError('a program was started')
    for f in 'Popen', 'run', 'check_call', 'call': monkeypatch.setattr(subprocess, f, called)
    (tmp_path/'a.png').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n')
    with pytest.raises(DlmechError, match=f'in none of the formats {", ".join(FORMATS)}'):
        read_image(tmp_path/'a.png', 8)


@pytest.mark.parametrize('end', ['png', 'jpeg', 'webp', 'bmp', 'gif', 'tiff', 'ppm'])
def test_every_format_listed_is_read_whole_or_refused(end):
    assert end.upper() in FORMATS
    out, g = io.BytesIO(), np.random.default_rng(0)
    Image.fromarray(g.integers(0, 255, (24, 20, 3), dtype=np.uint8)).save(out, end)
    good = out.getvalue()
    assert read_image(io.BytesIO(good), 8).shape == (8, 8, 3)
    for _ in range(60):
        bad = bytearray(good)
        for i in g.integers(0, len(bad), 3): bad[i] ^= int(g.integers(1, 255))
        cut = bytes(bad[:int(g.integers(1, len(bad)))] if g.random() < .5 else bad)
        try: x = read_image(io.BytesIO(cut), 8, 'it')
        except DlmechError as e: assert re.match('it cannot be read as an image', str(e))
        else: assert x.shape == (8, 8, 3)


def test_an_upload_is_held_to_the_same():
    m = of_digits('0', '1')
    out = io.BytesIO()
    Image.new('1', (MOST_SIDE + 1, 1)).save(out, 'png')
    for content in out.getvalue(), b'%!PS-Adobe-3.0 EPSF-3.0', b'':
        with pytest.raises(DlmechError, match='^a.png cannot be read as an image'):
            uploaded(m, 'a.png', content)


# ---- names

def test_no_name_of_a_label_is_a_formula(measured):
    m, f = measured, 0
    for view in filter_view, images_view, causal_view: assert as_png(view(m, 2, f))[1:4] == b'PNG'
    for fig in (m[2].figure(), m.figure(), m[2].card(f)):
        fig.canvas.draw()
        plt.close(fig)
    texts = {t.get_text() for t in filter_view(m, 2, f).axes[0].get_yticklabels()}
    assert r'\$\frac{\$' in texts
    K = len(EVIL)
    field, row = np.eye(K), m[2].filters.iloc[0]
    for fig in (filter_figure(field, field > .3, np.arange(K), EVIL, title='$a$ $\\b'),
                layer_figure(m[2].filters, EVIL, '$\\frac$'),
                card_figure(field, field > .3, np.arange(K), EVIL, row, .3, [np.zeros((2, 2, 3), np.uint8)],
                            ['$\\x$'], '$\\y$')):
        fig.canvas.draw()
        plt.close(fig)


def test_views_of_an_image_draw_such_names():
    m = of_digits(*EVIL)
    for fig in image_view(m, 5, 0, 0), silenced_view(m, 5, 0, 0): assert as_png(fig)[1:4] == b'PNG'


def test_nothing_named_runs_in_the_report(measured, tmp_path):
    m = measured
    m.title, m[2].path = EVIL[0], EVIL[1]
    m[2].store.filters = m[2].filters.assign(filter=[*m[2].filters['filter'][:-1], EVIL[0]])
    folder = dlmech.report(m, tmp_path/'r', against=m).parent
    pages = {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob('*.html')}
    assert {'index.html', 'glossary.html', 'changes.html', 'layer-2/index.html', 'layer-2/filter-0.html'
            } <= {*pages}
    for html in pages.values():
        assert '<script>alert' not in html
        assert 'onerror=alert' not in re.sub(r'&#34;&gt;&lt;img src=x onerror=alert|'
                                             r'\\"\\u003e\\u003cimg src=x onerror=alert', '', html)
        assert '&lt;script&gt;alert(1)&lt;/script&gt;' in html
        assert html.count('<script') == 2  # of its own, both from files
        assert html.count('<script src="') == 2
    names = re.search("data-names='([^']*)'", pages['index.html'])[1]
    assert json.loads(html_text.unescape(names)) == EVIL


def test_labels_that_look_like_scripts_are_searched_and_shown_as_text(measured, tmp_path):
    "In a browser: no dialog, no request but for the report's own files, and the search finds them."
    path, index, opened = find_chromium(), dlmech.report(measured, tmp_path/'r'), []
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=['--no-sandbox', '--disable-gpu'])
        page = browser.new_page()
        for event in 'dialog', 'pageerror', 'console', 'requestfailed':
            page.on(event, lambda said: opened.append(said))
        page.goto(index.as_uri())
        page.get_by_role('searchbox').fill(EVIL[0])
        assert page.evaluate('document.querySelectorAll("main script, main img").length') == 0
        browser.close()
    assert opened == []


# ---- the shell

@pytest.mark.parametrize('value', ["a b", "a'b", '$(touch x)', '; rm -rf x', '`x`', 'a"b', '-p'])
def test_a_command_that_is_shown_is_one_command(value):
    config = {k: getattr(Parameters(), k) for k in ('arch', 'labels', 'heads')}
    config |= dict(dataset=f'folder:{value}')
    words = shlex.split(command(config))
    assert words == ['papermill', '03_filter.ipynb', 'out.ipynb', '-p', 'dataset', f'folder:{value}']


def test_where_notebooks_were_copied_is_said_for_the_shell(tmp_path, capsys):
    assert main(['notebooks', str(tmp_path/"my $(x) notebooks")]) == 0
    said = shlex.split(capsys.readouterr().out.split('next: ')[1])
    assert Path(said[1]) == tmp_path/'my $(x) notebooks'/'03_filter.ipynb'


def test_no_token_of_the_tests_is_known():
    text = (Path(__file__).parent.parent/'test_explore.py').read_text()
    assert re.search(r'token = secrets\.token_hex', text)
    assert not re.search(r"token=[\w']", text)
