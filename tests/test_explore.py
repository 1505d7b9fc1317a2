"The explorer as a user meets it: its controls driven by value, and a real JupyterLab in a real browser."
import html, io, json, os, secrets, shutil, socket, subprocess, sys, time, urllib.request
from datetime import datetime
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from matplotlib.text import Text
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import dlmech, dlmech.look.views, dlmech.measurement
from dlmech.arch import get_model
from dlmech.causal import causal, measure_falls, read_falls
from dlmech.datasets import get_data, to_float
from dlmech.look.explore import Explorer, words_html
from dlmech.look.glossary import GLOSSARY
from dlmech.look.views import (as_png, evidence_rank, filter_order, filter_view, image_fields, images_view,
                               layer_maps, network_input, row_view, shown_images, silenced_table)
from dlmech.measurement import measure_run
from dlmech.model import start
from dlmech.run import clusters_of, DlmechError
from dlmech.silence import even_batches, image_labels, let_through, SWITCH

TOP = Path(__file__).resolve().parent.parent
SMALL = dict(arch='vgg6', dataset='digits', layer='all', d=4)
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg',
       'PYTHONPATH': f'{TOP}:{os.environ.get("PYTHONPATH", "")}'}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A small finished run."
    r = start(**SMALL, runs=str(tmp_path_factory.mktemp('runs')))
    measure_run(r, [3, 4, 5])
    return r


@pytest.fixture
def explorer(run): return Explorer(run)


def shown(e): return {k: p.value for k, p in e.screen.pictures.items()}
def picture(size=(50, 40), mode='L', fmt='png'):
    out = io.BytesIO()
    Image.linear_gradient('L').resize(size).convert(mode).save(out, fmt)
    return out.getvalue()
def upload(e, name, content):
    e.controls['upload'].value = ({'name': name, 'type': '', 'size': len(content),
                                   'content': memoryview(content), 'last_modified': datetime.now()},)
    e.flush()


@pytest.mark.parametrize('control, value, changed', [
    ('layer', 4, {'matrix', 'curves', 'image', 'images', 'silence', 'causal'}),
    ('filter', 7, {'matrix', 'image', 'images', 'silence', 'causal'}),
    ('number', 3, {'matrix', 'image', 'images', 'silence', 'causal'}),
    ('order', 'noise', {'matrix', 'image', 'images', 'silence', 'causal'}),
    ('threshold', .7, {'matrix', 'curves', 'causal'}),
    ('label', 6, {'matrix', 'image', 'silence'}), ('image', 4, {'image', 'silence'}),
    ('switch', SWITCH[1], {'silence'})])
def test_a_control_changes_what_it_should_and_nothing_else(explorer, control, value, changed):
    before = shown(explorer)
    explorer.controls[control].value = value
    explorer.flush()
    assert {k for k, v in shown(explorer).items() if v != before[k]} == changed
    assert explorer.said.value == ''


def test_what_is_on_the_screen_is_what_the_function_draws(explorer):
    explorer.controls['layer'].value = 4
    for f in (3, 9, 20): explorer.controls['filter'].value = f
    explorer.flush()
    fresh = as_png(filter_view(explorer.m, 4, explorer.controls['number'].value, .3, 0))
    a, b = (np.asarray(Image.open(io.BytesIO(png))).astype(int)
            for png in (explorer.screen.pictures['matrix'].value, fresh))
    assert a.shape == b.shape
    assert (a != b).mean() < .005


def test_the_switch_gives_the_network_back_exactly(explorer):
    net = explorer.m.net
    weights = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    image = explorer.screen.pictures['silence'].value
    for position in (*SWITCH[1:], SWITCH[0]):
        explorer.controls['switch'].value = position
        explorer.flush()
    assert all(torch.equal(v, weights[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert not any(m._forward_hooks for m in net.modules())
    assert explorer.screen.pictures['silence'].value == image


def test_a_wrong_upload_is_refused_and_the_explorer_lives_on(explorer):
    before = shown(explorer)
    for content in (b'not an image', picture()[:60], b''):
        upload(explorer, '<b>cat</b>.png', content)
        assert '&lt;b&gt;cat&lt;/b&gt;.png cannot be read as an image' in explorer.said.value
        assert explorer.controls.upload is None
    assert shown(explorer) == before
    upload(explorer, 'grey.png', picture())
    assert 'grey.png: 50 x 40 pixels, L; made 32 x 32, RGB' in explorer.said.value
    assert explorer.screen.pictures['image'].value != before['image']
    assert not explorer.controls['back'].disabled
    one = explorer.screen.pictures['image'].value
    upload(explorer, 'photo.jpg', picture((300, 200), 'RGB', 'jpeg'))
    assert explorer.screen.pictures['image'].value != one
    explorer.controls['filter'].value = 5
    explorer.flush()
    assert explorer.screen.pictures['image'].value != one
    explorer.controls['filter'].value = 0
    explorer.controls['back'].click()
    explorer.flush()
    assert shown(explorer)['image'] == before['image']


def test_the_button_silences_the_filter_on_show_and_no_other(explorer, monkeypatch):
    e = explorer
    e.controls['number'].value = 2
    e.flush()
    before = shown(e)
    e.controls['falls'].click()
    e.flush()
    assert {k for k, v in shown(e).items() if v != before[k]} == {'causal'}
    assert 'filter 2 of layer 5 silenced on 1000 training images' in e.said.value
    kept = e.screen.kept.things['falls', 5, 2]
    batches = even_batches(e.m.source.data().train, 'cpu', 1000)
    whole = measure_falls(e.m.net, 'layers.5', batches, 10, 32, [[2]])
    assert np.allclose(kept['zero'], whole.zero[0])
    monkeypatch.setattr('dlmech.look.explore.measure_causal', None)  # it is not asked again
    e.controls['number'].value = 3
    e.flush()
    assert shown(e)['causal'] not in (before['causal'], '')
    assert 'not measured yet' in e.about.value
    e.controls['number'].value = 2
    assert 'without it' in e.about.value
    e.controls['falls'].click()
    e.flush()
    assert 'silenced on' in e.said.value


def test_a_filter_is_asked_for_by_its_number_or_its_place(explorer):
    c = explorer.controls
    assert c.state().filter == c['number'].value == filter_order(explorer.m, 5, 'evidence')[0]  # most telling
    c['filter'].value = 5
    assert c['number'].value == c.state().filter == filter_order(explorer.m, 5, 'evidence')[5]
    c['number'].value = 17
    assert c.state().filter == 17
    assert c.ranks[c['filter'].value] == 17
    c['order'].value = 'number'
    c['filter'].value = 9
    assert c['number'].value == 9
    c['layer'].value = 4
    assert c['filter'].value == 0
    assert c['number'].value == c.state().filter


def test_the_most_telling_filter_is_no_accident():
    "One that takes all labels, one of a single element, and one that is all but silent come after evidence."
    rows = [dict(n_labels=10, sizes='10', noise=0, p_value=1., q_value=1., max_field=1.),    # all labels
            dict(n_labels=1, sizes='1', noise=0, p_value=.1, q_value=.12, max_field=2.),    # a single element
            dict(n_labels=3, sizes='1 1 1', noise=0, p_value=.001, q_value=.01, max_field=0.),  # silent
            dict(n_labels=3, sizes='2 1', noise=1, p_value=.001, q_value=.01, max_field=1.),
            dict(n_labels=2, sizes='2', noise=20, p_value=.02, q_value=.03, max_field=1.)]
    assert evidence_rank(pd.DataFrame(rows), 10).tolist()[3:] == [0, 1]
    old = pd.DataFrame(rows).drop(columns=['p_value', 'q_value'])                            # of dlmech 0.1
    assert sorted(evidence_rank(old, 10)) == [0, 1, 2, 3, 4]


def test_the_threshold_moves_the_clusters_everywhere(explorer, run):
    "Menu, switch, order, numbers, ring: all as a run measured at that threshold would have it."
    again = measure_run(start(**SMALL, threshold=.6, runs=str(run.path.parent)), [5])
    e, c = explorer, explorer.controls
    alone = [[let_through(m[5], f, SWITCH[3]) for f in range(len(m[5]))] for m in (again, e.m)]
    c['number'].value = f = next(f for f, (a, b) in enumerate(zip(*alone)) if not a.equal(b))
    e.flush()
    menu, about = c['cluster'].options, e.about.value
    c['threshold'].value = .6
    e.flush()
    assert c.state().filter == f                                            # it stays, its place is another
    assert c.ranks == filter_order(again, 5, 'evidence')
    clusters = clusters_of(again[5].filters.iloc[f])
    assert [text for text, _ in c['cluster'].options] == ['{' + ', '.join(map(str, labels)) + '}'
                                                          for labels in clusters]
    shared = [col for col in again[5].filters if not col.endswith('_null')]
    pd.testing.assert_frame_equal(e.screen.at(c.state())[5].filters[shared], again[5].filters[shared],
                                  check_dtype=False)
    assert e.about.value != about
    assert f'>{again[5].row.snr:.3g}<' in e.about.value
    own, other = (silenced_table(m, 5, f, 0, SWITCH[3]) for m in (again, e.m))
    pd.testing.assert_frame_equal(silenced_table(e.m, 5, f, 0, SWITCH[3], threshold=.6), own)
    assert not own.equals(other)
    assert e.said.value == ''
    c['threshold'].value = .3
    e.flush()
    assert c['cluster'].options == menu
    assert e.about.value == about


def test_maps_of_one_number_are_no_veil(run):
    m = dlmech.open(run.path)
    assert layer_maps(m, 5, torch.zeros(1, 3, 32, 32)).shape[2:] == (1, 1)
    said = lambda n: [t.get_text() for t in images_view(m, n, 0).axes[0].texts]
    strengths = layer_maps(m, 5, network_input(m.images, m[5].top['image'][0].tolist(), torch.device('cpu')))
    assert 'not where' in said(5)[-1]
    assert said(5)[8:16] == [f'{a:.3g}' for a in strengths[:, 0, 0, 0].tolist()]
    assert not any(said(3)[8:])


def test_no_text_is_smaller_than_8_points(explorer, run):
    causal(explorer.m[4], n=30)
    explorer.controls['layer'].value = 4
    for switch in SWITCH[:2]:
        explorer.controls['switch'].value = switch
        explorer.flush()
    m = explorer.m
    figures = [*explorer.screen.figures.values(), m[5].card(3), m[5].figure(), m.figure()]
    sizes = {t.get_fontsize() for fig in figures for t in fig.findobj(Text) if t.get_text()}
    assert len(figures) == 9
    assert min(sizes) >= 8


def test_the_numbers_stand_beside_their_null(explorer):
    m, f = explorer.m, explorer.controls['number'].value
    row = row_view(m, 5, f).iloc[0]
    for value in (row.snr, row.noise, row.noise_null, row.noise - row.noise_null, m[5].row.noise_null):
        assert f'>{value:.3g}<' in explorer.about.value
    assert f'p-value {row.p_value:.2g}, q-value {row.q_value:.2g}' in explorer.about.value
    assert all(GLOSSARY[term] in html.unescape(words_html()) for term in ('Nc', 'Cs', 'n', 'SNR', 'winner',
                                                                           'cross', 'null'))


def test_the_whole_layer_is_silenced_and_kept(run, tmp_path):
    e = Explorer(shutil.copytree(run.path, tmp_path/run.path.name))
    e.controls['layer'].value = 5
    e.controls['causal'].click()
    e.flush()
    assert 'all filters of layer 5 silenced on 1000 training images' in e.said.value
    assert 'chance 0.5' in e.about.value
    assert e.bar.layout.display == 'none'
    table = causal(dlmech.open(e.m.source.run.path)[5])              # read, not made: the same falls
    assert np.array_equal(read_falls(dlmech.open(e.m.source.run.path)[5]).zero, read_falls(e.m[5]).zero)
    assert len(table) == len(e.m[5])
    f = int(table.auc_zero.notna().argmax())
    e.controls['number'].value = f
    e.flush()
    assert f'causal AUC {table.auc_zero[f]:.2f} at zero' in e.about.value


def test_a_button_measures_the_other_layers(run, tmp_path):
    e = Explorer(shutil.copytree(run.path, tmp_path/run.path.name))
    c = e.controls
    assert c['layer'].options == (3, 4, 5)
    assert c['measure'].description == 'measure the other 2 layers'
    c['number'].value = 7
    c['measure'].click()
    e.flush()
    assert e.said.value.count('all 5 layers are measured') == 1
    assert c['layer'].options == (1, 2, 3, 4, 5)
    assert (c['layer'].value, c['number'].value) == (5, 7)           # one stays where one was
    assert c['measure'].layout.display == 'none'
    whole = measure_run(start(**SMALL, runs=str(tmp_path)), [1, 2, 3, 4, 5])
    pd.testing.assert_frame_equal(e.m.layers, whole.layers)
    c['layer'].value = 1
    e.flush()
    assert all(shown(e).values())


def test_what_was_silenced_before_is_there_without_the_button(run, tmp_path):
    e = Explorer(shutil.copytree(run.path, tmp_path/run.path.name))
    without = e.screen.pictures['causal'].value
    causal(e.m[5], n=30)
    again = Explorer(e.m.source.run.path)
    assert again.screen.pictures['causal'].value not in (without, b'')


def test_save_writes_both_and_says_the_call_that_makes_it_again(explorer, run):
    "The call is for a Python that has done `import dlmech` and `from dlmech.look.views import *`."
    views = dlmech.look.views
    known = {'dlmech': dlmech} | {name: getattr(views, name) for name in views.__all__}
    upload(explorer, 'grey.png', picture())
    for view in explorer.screen.pictures:
        explorer.controls['view'].value = view
        explorer.controls['save'].click()
        said = explorer.said.value
        assert 'dlmech.open(' in said, said
        line = html.unescape(said.split('svg: ')[1].split('</div>')[0])
        assert eval(line, dict(known)).axes
    assert {p.suffix for p in (run.path/'figures').iterdir()} == {'.png', '.svg'}


def test_a_run_that_is_not_finished_says_what_makes_it(tmp_path):
    with pytest.raises(DlmechError, match='is no finished run .* papermill 03_filter.ipynb out.ipynb'):
        dlmech.explore(tmp_path/'nothing')
    (tmp_path/'half').mkdir()
    (tmp_path/'half'/'config.json').write_text(json.dumps(dict(arch='vgg6', dataset='digits', labels=[0, 3],
                                                               d=4, seed=0, recipe='fast', epochs=0,
                                                               layers=[], names=['0', '3'])))
    with pytest.raises(DlmechError, match='make one with papermill 03_filter.ipynb out.ipynb -p arch vgg6 '
                                          '-p labels 0,3 -p d 4$'):
        dlmech.explore(tmp_path/'half')


def test_without_its_images_a_run_still_shows_its_matrices(run, tmp_path, monkeypatch):
    def missing(*a, **k): raise DlmechError('dataset: it is not here')
    for module in dlmech.measurement, dlmech.model: monkeypatch.setattr(module, 'get_data', missing)
    e = Explorer(run.path)
    assert e.screen.pictures['matrix'].value
    assert not e.screen.pictures['image'].value
    assert 'it is not here' in e.said.value


def test_another_run_beside_it_can_be_chosen(run, tmp_path):
    both = shutil.copytree(run.path, tmp_path/'a').parent
    small = start(**SMALL | dict(d=2, labels='0,3,7', epochs=1), runs=str(both))
    measure_run(small, [5])
    e = Explorer(small)
    assert e.controls['filter'].max == 15
    assert len(e.controls['run'].options) == 2
    e.controls['run'].value = 'a'
    e.flush()
    assert e.controls['filter'].max == 31
    assert e.controls['label'].options[-1] == ('9', 9)
    assert e.said.value == ''


def test_a_run_its_folder_and_its_measurement_open_the_same(run):
    given = run, run.path, str(run.path), dlmech.open(run.path), measure_run(run, [3, 4, 5])
    first, *others = [shown(dlmech.explore(g)) for g in given]
    assert all(first.values())
    for other in others: assert other == first


class Turned(Dataset):
    "Images by somebody else's transform, with labels that only going through them tells."
    def __init__(self, images): self.images = images
    def __len__(self): return len(self.images)
    def __getitem__(self, i):
        picture, label = self.images[i]
        return to_float(picture[None])[0].flip(0), label


@pytest.fixture(scope='module')
def three(): return get_data('digits', labels=[0, 3, 7])


@pytest.mark.parametrize('form', ['own', 'tensors', 'dataset', 'loader'])
def test_a_network_of_ones_own_opens_with_the_images_it_was_measured_on(three, form, tmp_path, monkeypatch):
    as_form = dict(own=lambda s: s, tensors=lambda s: (to_float(s.images), s.labels), dataset=Turned,
                   loader=lambda s: DataLoader(Turned(s), 32, shuffle=True))[form]
    images = as_form(three.test)
    net = get_model('vgg6', 3, d=2).train()
    m = dlmech.measure(net, as_form(three.train), images, layers=['layers.4', 'layers.5'], heads='ridge')
    e = dlmech.explore(m)
    e.controls['label'].index = 2
    e.controls['image'].value = 1
    e.controls['layer'].value = 4
    e.flush()
    assert e.said.value == ''
    assert all(shown(e).values())
    assert e.controls['run'].options == (m.title,)
    assert image_labels(shown_images(m))[e.controls.state().image] == 2
    mean = torch.stack([image_fields(m, 4, i)[3]                      # what one image gives, on average
                        for i in (image_labels(images) == 2).nonzero()[:, 0].tolist()]).mean(0)
    assert torch.allclose(mean.double(), m[4].field(3)[2], rtol=1e-3, atol=1e-4*m[4].field(3).abs().max())
    before = shown(e)
    e.controls['switch'].value = SWITCH[1]
    e.flush()
    assert shown(e)['silence'] != before['silence']
    assert net.training
    upload(e, 'grey.png', picture())
    assert ('made 32 x 32' in e.said.value) == (form == 'own')
    assert ('is not known' in e.said.value) == (form != 'own')
    monkeypatch.chdir(tmp_path)
    e.controls['save'].click()
    assert f'filter_view(m, 4, {e.controls["number"].value}, 0.3, 2)' in e.said.value
    assert {p.suffix for p in (tmp_path/'figures').iterdir()} == {'.png', '.svg'}


def test_a_saved_measurement_shows_as_much_as_it_is_given(three, tmp_path):
    net = get_model('vgg6', 3, d=2)
    m = dlmech.measure(net, three.train, three.test, layers='layers.5', heads='ridge')
    folder = m.save(tmp_path/'mine')
    bare, with_images = dlmech.explore(folder), dlmech.explore(dlmech.open(folder, images=three.test))
    everything = dlmech.explore(dlmech.open(folder, net, three.test))
    whole = shown(dlmech.explore(m))
    assert {k for k, v in shown(bare).items() if v} == {'matrix', 'curves', 'causal'}
    assert 'holds no images' in bare.said.value
    assert {k for k, v in shown(with_images).items() if v} == {'matrix', 'curves', 'causal', 'images'}
    assert 'holds no net' in with_images.said.value
    assert shown(everything) == whole
    for e in bare, with_images, everything:
        before = e.screen.pictures['matrix'].value
        e.controls['filter'].value = 3
        e.flush()
        assert e.screen.pictures['matrix'].value != before


# ---- JupyterLab in a browser

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def with_parameters(name, path, **parameters):
    "A copy of a notebook as papermill would make it."
    nb = json.loads((TOP/'nbs'/f'{name}.ipynb').read_text())
    at = next(i for i, c in enumerate(nb['cells']) if 'parameters' in c['metadata'].get('tags', []))
    source = '# Parameters\n' + ''.join(f'{k} = {v!r}\n' for k, v in parameters.items())
    nb['cells'].insert(at+1, dict(cell_type='code', execution_count=None, id='injected',
                                  metadata=dict(tags=['injected-parameters']), outputs=[], source=source))
    path.write_text(json.dumps(nb))


@pytest.fixture(scope='module')
def lab(tmp_path_factory, run):
    """The address of a JupyterLab that serves the explorer's notebook, everything of its own in a temporary
    folder."""
    tmp, port = tmp_path_factory.mktemp('lab'), free_port()
    with_parameters('06_explore', tmp/'06_explore.ipynb', **SMALL, runs=str(run.path.parent))
    settings = tmp/'settings'/'@jupyterlab'
    for folder, name, value in (('apputils-extension', 'notification', {'fetchNews': 'false'}),
                                ('notebook-extension', 'tracker', {'windowingMode': 'none'})):
        (settings/folder).mkdir(parents=True)
        (settings/folder/f'{name}.jupyterlab-settings').write_text(json.dumps(value))
    env = ENV | {'HOME': str(tmp), 'JUPYTER_CONFIG_DIR': str(tmp/'config'),
                 'JUPYTER_DATA_DIR': str(tmp/'share'), 'JUPYTER_RUNTIME_DIR': str(tmp/'runtime'),
                 'IPYTHONDIR': str(tmp/'ipython'),
                 'JUPYTERLAB_SETTINGS_DIR': str(tmp/'settings'),
                 'JUPYTERLAB_WORKSPACES_DIR': str(tmp/'workspaces'), 'MPLCONFIGDIR': str(tmp/'mpl')}
    env.pop('MPLBACKEND')
    token = secrets.token_hex(16)
    args = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1',
            f'--port={port}', f'--IdentityProvider.token={token}', '--LabApp.expose_app_in_browser=True',
            f'--notebook-dir={tmp}']
    with open(tmp/'log', 'w') as log: p = subprocess.Popen(args, env=env, cwd=tmp, stdout=log, stderr=log)
    try:
        deadline = time.time() + 90
        while True:
            try:
                urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status?token={token}', timeout=5)
                break
            except OSError:
                assert time.time() < deadline, (tmp/'log').read_text()[-3000:]
                assert p.poll() is None, (tmp/'log').read_text()[-3000:]
                time.sleep(.3)
        yield f'http://127.0.0.1:{port}/lab/tree/06_explore.ipynb?token={token}&reset'
    finally:
        p.terminate()
        try: p.wait(20)
        except subprocess.TimeoutExpired: p.kill()


@pytest.fixture(scope='module')
def chromium():
    "A headless browser."
    api = pytest.importorskip('playwright.sync_api',
                              reason='playwright is not installed, so no browser opens the explorer')
    path = shutil.which('chromium') or shutil.which('chromium-browser')
    if not path: pytest.skip('there is no chromium, so no browser opens the explorer')
    flags = ('--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
             '--disable-component-update --disable-sync --disable-dev-shm-usage')
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=flags.split())
        yield browser
        browser.close()


ERRORS = '''() => window.jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type == 'code')
    .flatMap(c => c.model.outputs.toJSON()).filter(o => o.output_type == 'error').map(o => o.evalue)'''
PICTURES = "() => [...document.querySelectorAll('img.widget-image')].map(i => i.src)"
CHANGED = f"""([old, which]) => {{
    const now = ({PICTURES})();
    return which.every(i => now[i] && now[i] != old[i]);
}}"""
KERNEL = "window.jupyterapp.shell.currentWidget.sessionContext?.session?.kernel?.status"


def at_rest(page):
    "Waits until no picture changes for a second and a half; all pictures then."
    deadline, old = time.time() + 60, None
    while (now := page.evaluate(PICTURES)) != old:
        assert time.time() < deadline, 'the pictures do not come to rest'
        old = now
        page.wait_for_timeout(1500)
    return now


def changed(page, before, which):
    "Waits until these pictures are others and all have come to rest; all pictures then."
    page.wait_for_function(CHANGED, arg=[before, which], timeout=60_000)
    return at_rest(page)


def control(page, kind, name):
    "The control of that kind with that label."
    return page.locator(kind, has=page.locator('.widget-label', has_text=name))


def drag(page, name, by):
    "Drags a slider's handle by so many pixels, fast."
    slider = control(page, '.widget-inline-hbox', name).locator('.noUi-handle').first
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    x, y = box['x'] + box['width']/2, box['y'] + box['height']/2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by, y, steps=40)
    page.mouse.up()


WIDE = """() => { const at = document.querySelector('.jp-OutputArea-output .widget-vbox');
    return [at.scrollWidth - at.clientWidth, at.clientWidth]; }"""


def fits(page):
    "Whether nothing of the explorer stands out of its side, on a laptop and on a phone."
    for width in (390, 1280):
        page.set_viewport_size(dict(width=width, height=1000))
        page.wait_for_timeout(500)
        over, wide = page.evaluate(WIDE)
        assert over <= 1, f'at {width} pixels it is {over} wider than the {wide} that it has'


def screenshots(page, folder):
    "The explorer at three widths, to be looked at."
    for width in (1920, 1280, 390):
        page.set_viewport_size(dict(width=width, height=1900))
        page.locator('.widget-vbox').last.scroll_into_view_if_needed()
        page.wait_for_timeout(1000)
        page.screenshot(path=f'{folder}/page-{width}.png')
        page.locator('.widget-vbox').last.screenshot(path=f'{folder}/explore-{width}.png')


def test_in_a_real_jupyterlab(lab, chromium, tmp_path):
    page = chromium.new_page(viewport=dict(width=1280, height=1000))
    page.set_default_timeout(60_000)
    page.goto(lab)
    page.wait_for_function('() => window.jupyterapp?.shell?.currentWidget?.content?.widgets?.length > 20')
    page.wait_for_function(f"() => {KERNEL} == 'idle'")
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    page.wait_for_function(f'() => ({PICTURES})().filter(s => s).length >= 5 || ({ERRORS})().length',
                           timeout=180_000)
    assert page.evaluate(ERRORS) == []
    page.wait_for_function(f"() => {KERNEL} == 'idle'", timeout=180_000)                 # all cells have run
    first = at_rest(page)
    drag(page, 'filter', 60)
    second = changed(page, first, [0, 2, 3])  # matrix, image, images
    assert second[1] == first[1]                                                          # the curves stay
    number = control(page, '.widget-inline-hbox', 'no.').locator('input')
    number.fill('11')                                                                    # typed
    number.press('Enter')
    second = changed(page, second, [0, 2, 3])
    page.get_by_text('Layer 5, filter 11').wait_for()
    page.keyboard.press('Tab')                                                           # the threshold
    page.keyboard.press('ArrowRight')
    page.get_by_text('threshold 0.31').wait_for()
    second = at_rest(page)
    control(page, '.widget-dropdown', 'network').locator('select').select_option(SWITCH[2])
    second = changed(page, second, [4])
    if folder := os.environ.get('DLMECH_SCREENSHOTS'): screenshots(page, folder)
    fits(page)
    drag(page, 'layer', -100)
    third = changed(page, second, [0, 1, 2, 3])
    (tmp_path/'grey.png').write_bytes(picture())
    with page.expect_file_chooser() as chooser: page.locator('.widget-upload').first.click()
    chooser.value.set_files(tmp_path/'grey.png')
    changed(page, third, [2])                                                            # the image
    page.get_by_text('grey.png: 50 x 40 pixels, L; made 32 x 32, RGB', exact=True).wait_for()
    assert page.evaluate(ERRORS) == []
    page.close()
