"The explorer as a user meets it: its controls driven by value, and a real JupyterLab in a real browser."
import io, json, os, shutil, socket, subprocess, sys, time, urllib.request
from datetime import datetime
from pathlib import Path

import numpy as np, pytest, torch
from PIL import Image

from dlmech.explore import SWITCH, Explorer, filter_view, as_png, open_finished
from dlmech.filter import filtered
from dlmech.model import start
from dlmech.run import DlmechError

TOP = Path(__file__).resolve().parent.parent
SMALL = dict(arch='vgg6', dataset='digits', layer='all', d=4)
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg',
       'PYTHONPATH': f'{TOP}:{os.environ.get("PYTHONPATH", "")}'}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A small finished run."
    r = start(**SMALL, runs=str(tmp_path_factory.mktemp('runs')))
    filtered(r, [3, 4, 5])
    return r


@pytest.fixture
def explorer(run): return Explorer(run)


def shown(e): return {k: p.value for k, p in e.pictures.items()}
def picture(size=(50, 40), mode='L', fmt='png'):
    out = io.BytesIO()
    Image.linear_gradient('L').resize(size).convert(mode).save(out, fmt)
    return out.getvalue()
def upload(e, name, content):
    e.c['upload'].value = ({'name': name, 'type': '', 'size': len(content), 'content': memoryview(content),
                            'last_modified': datetime.now()},)
    e.flush()


@pytest.mark.parametrize('control, value, changed', [
    ('layer', 4, {'matrix', 'curves', 'image', 'images', 'silence'}),
    ('filter', 7, {'matrix', 'image', 'images', 'silence'}),
    ('order', 'SNR', {'matrix', 'image', 'images', 'silence'}), ('threshold', .7, {'matrix'}),
    ('label', 6, {'matrix', 'image', 'silence'}), ('image', 4, {'image', 'silence'}),
    ('switch', SWITCH[1], {'silence'})])
def test_a_control_changes_what_it_should_and_nothing_else(explorer, control, value, changed):
    before = shown(explorer)
    explorer.c[control].value = value
    explorer.flush()
    assert {k for k, v in shown(explorer).items() if v != before[k]} == changed
    assert explorer.texts['said'].value == ''


def test_what_is_on_the_screen_is_what_the_function_draws(explorer):
    explorer.c['layer'].value = 4
    for f in (3, 9, 20): explorer.c['filter'].value = f
    explorer.flush()
    fresh = as_png(filter_view(explorer.run, 4, 20, .3, 0))
    a, b = (np.asarray(Image.open(io.BytesIO(png))).astype(int)
            for png in (explorer.pictures['matrix'].value, fresh))
    assert a.shape == b.shape
    assert (a != b).mean() < .005


def test_the_switch_gives_the_network_back_exactly(explorer):
    net = explorer.run.net
    weights = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    image = explorer.pictures['silence'].value
    for position in (*SWITCH[1:], SWITCH[0]):
        explorer.c['switch'].value = position
        explorer.flush()
    assert all(torch.equal(v, weights[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert not any(m._forward_hooks for m in net.modules())
    assert explorer.pictures['silence'].value == image


def test_a_wrong_upload_is_refused_and_the_explorer_lives_on(explorer):
    before = shown(explorer)
    for content in (b'not an image', picture()[:60], b''):
        upload(explorer, '<b>cat</b>.png', content)
        assert '&lt;b&gt;cat&lt;/b&gt;.png cannot be read as an image' in explorer.texts['said'].value
        assert explorer.picture is None
    assert shown(explorer) == before
    upload(explorer, 'grey.png', picture())
    assert 'grey.png: 50 x 40 pixels, L; made 32 x 32, RGB' in explorer.texts['said'].value
    assert explorer.pictures['image'].value != before['image']
    assert not explorer.c['back'].disabled
    one = explorer.pictures['image'].value
    upload(explorer, 'photo.jpg', picture((300, 200), 'RGB', 'jpeg'))
    explorer.c['filter'].value = 5
    explorer.flush()
    assert explorer.pictures['image'].value != one
    explorer.c['filter'].value = 0
    explorer.c['back'].click()
    explorer.flush()
    assert shown(explorer)['image'] == before['image']


def test_save_writes_both_and_says_the_call_that_makes_it_again(explorer):
    import dlmech.explore
    upload(explorer, 'grey.png', picture())
    for view in explorer.pictures:
        explorer.c['view'].value = view
        explorer.c['save'].click()
        said = explorer.texts['said'].value
        assert 'open_finished(' in said, said
        line = said.split('svg: ')[1].split('</span>')[0].replace('&#x27;', "'")
        assert eval(line, vars(dlmech.explore)).axes
    assert {p.suffix for p in (explorer.run.path/'figures').iterdir()} == {'.png', '.svg'}


def test_a_run_that_is_not_finished_says_what_makes_it(tmp_path):
    with pytest.raises(DlmechError, match='is no finished run .* papermill 03_filter.ipynb out.ipynb'):
        open_finished(tmp_path/'nothing')
    (tmp_path/'half').mkdir()
    (tmp_path/'half'/'config.json').write_text(json.dumps(dict(arch='vgg6', dataset='digits', labels=[0, 3],
                                                               d=4, seed=0, recipe='fast', epochs=0,
                                                               layers=[])))
    with pytest.raises(DlmechError, match='make one with papermill 03_filter.ipynb out.ipynb -p arch vgg6 '
                                          '-p labels 0,3 -p d 4$'):
        open_finished(tmp_path/'half')


def test_without_its_images_a_run_still_shows_its_matrices(run, tmp_path, monkeypatch):
    import dlmech.explore
    def missing(*a, **k): raise DlmechError('dataset: it is not here')
    monkeypatch.setattr(dlmech.explore, 'get_data', missing)
    e = Explorer(run.path)
    assert e.pictures['matrix'].value
    assert not e.pictures['image'].value
    assert 'it is not here' in e.texts['said'].value


def test_another_run_beside_it_can_be_chosen(run, tmp_path):
    both = shutil.copytree(run.path, tmp_path/'a').parent
    small = start(**SMALL | dict(d=2, labels='0,3,7', epochs=1), runs=str(both))
    filtered(small, [5])
    e = Explorer(small)
    assert e.c['filter'].max == 15
    assert len(e.c['run'].options) == 2
    e.c['run'].value = 'a'
    e.flush()
    assert e.c['filter'].max == 31
    assert e.c['label'].options[-1] == ('9', 9)
    assert e.texts['said'].value == ''


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
    args = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1',
            f'--port={port}', '--IdentityProvider.token=t', '--LabApp.expose_app_in_browser=True',
            f'--notebook-dir={tmp}']
    with open(tmp/'log', 'w') as log: p = subprocess.Popen(args, env=env, cwd=tmp, stdout=log, stderr=log)
    try:
        deadline = time.time() + 90
        while True:
            try:
                urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status?token=t', timeout=5)
                break
            except OSError:
                assert time.time() < deadline, (tmp/'log').read_text()[-3000:]
                assert p.poll() is None, (tmp/'log').read_text()[-3000:]
                time.sleep(.3)
        yield f'http://127.0.0.1:{port}/lab/tree/06_explore.ipynb?token=t&reset'
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
    flags = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --disable-dev-shm-usage'
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=flags.split())
        yield browser
        browser.close()


ERRORS = '''() => window.jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type == 'code')
    .flatMap(c => c.model.outputs.toJSON()).filter(o => o.output_type == 'error').map(o => o.evalue)'''
PICTURES = "() => [...document.querySelectorAll('img.widget-image')].map(i => i.src)"


def changed(page, before, which):
    "Waits until these pictures are others and all have come to rest; all pictures then."
    page.wait_for_function('([old, which]) => '
                           f'{{ const now = ({PICTURES})(); return which.every(i => now[i] && now[i] != old[i]) }}', arg=[before, which], timeout=30_000)
    page.wait_for_timeout(1500)
    return page.evaluate(PICTURES)


def drag(page, name, by):
    "Drags a slider's handle by so many pixels, fast."
    slider = page.locator('.widget-inline-hbox', has=page.locator('.widget-label',
                                                                  has_text=name)).locator('.noUi-handle').first
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    x, y = box['x'] + box['width']/2, box['y'] + box['height']/2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by, y, steps=40)
    page.mouse.up()


def screenshots(page, folder):
    "The explorer at two widths, to be looked at."
    for width in (1920, 1280):
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
    page.wait_for_function("() => window.jupyterapp.shell.currentWidget.sessionContext?.session?.kernel?.status == 'idle'")
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    page.wait_for_function(f'() => ({PICTURES})().filter(s => s).length >= 5 || ({ERRORS})().length',
                           timeout=180_000)
    assert page.evaluate(ERRORS) == []
    page.wait_for_timeout(1500)
    first = page.evaluate(PICTURES)
    drag(page, 'filter', 60)
    second = changed(page, first, [0, 2, 3])  # matrix, images, image
    assert second[1] == first[1]                                                          # the curves stay
    page.locator('.widget-dropdown', has=page.locator('.widget-label',
                                                      has_text='network')).locator('select').select_option(SWITCH[2])
    second = changed(page, second, [4])
    if folder := os.environ.get('DLMECH_SCREENSHOTS'): screenshots(page, folder)
    drag(page, 'layer', -150)
    third = changed(page, second, [0, 1, 2, 3])
    (tmp_path/'grey.png').write_bytes(picture())
    with page.expect_file_chooser() as chooser: page.locator('.widget-upload').first.click()
    chooser.value.set_files(tmp_path/'grey.png')
    changed(page, third, [3])
    page.get_by_text('grey.png: 50 x 40 pixels, L; made 32 x 32, RGB', exact=True).wait_for()
    assert page.evaluate(ERRORS) == []
    page.close()
