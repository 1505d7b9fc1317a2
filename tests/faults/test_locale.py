"""A terminal whose locale is not UTF-8, as `LC_ALL=C` in a job of a cluster: what is written is the same, and
names of labels survive. Python would mend C by itself (PEP 538, 540); here it is told not to."""
import json, shutil, subprocess, sys

import pandas as pd, pytest
from PIL import Image
from sklearn.datasets import load_digits

import dlmech
from helpers import ENV
from storage import files_of

NAMES = ['größe', '数字', 'plain <b>']
ASKED = '--arch vgg6 --d 2 --epochs 1 --heads ridge --layer 5 --data folder:bilder --runs'.split()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A folder of images whose labels have umlauts and Chinese names, and their files too."
    top, d = tmp_path_factory.mktemp('locale'), load_digits()
    for k, name in enumerate(NAMES):
        (top/'bilder'/name).mkdir(parents=True)
        for i, x in enumerate(d.images[d.target == k][:6]):
            Image.fromarray((x * 15).astype('uint8')).resize((32, 32)).save(top/'bilder'/name/f'{i}ü.png')
    return top


CODE = """
import sys
from pathlib import Path
from dlmech.cli import main
where, asked = sys.argv[1], sys.argv[3:]
assert sys.getfilesystemencoding() == sys.argv[2]
assert main([*asked, where]) == 0
assert main(['report', *map(str, Path(where).iterdir()), '--out', f'{where}-report']) == 0
sys.exit(main([*asked, 'größe']))
"""


def german(folder) -> dict:
    "The environment of a German terminal of the nineties."
    made = ['localedef', '-i', 'de_DE', '-f', 'ISO-8859-1', folder/'de_DE.ISO-8859-1']
    if not shutil.which('localedef') or subprocess.run(made, capture_output=True).returncode:
        pytest.skip('localedef, or what it reads, is not there')
    return dict(LC_ALL='de_DE.ISO-8859-1', LOCPATH=str(folder))


@pytest.mark.parametrize('name', ['ascii', pytest.param('iso8859-1', marks=pytest.mark.slow)])
def test_label_names_survive_a_locale_that_is_not_utf_8(folder, name):
    "And a path that the locale cannot write is refused with the way out."
    env = dict(PYTHONUTF8='0', PYTHONCOERCECLOCALE='0', PYTHONIOENCODING='')
    env |= dict(LC_ALL='C') if name == 'ascii' else german(folder)
    script = folder/'work.py'
    script.write_text(CODE, encoding='utf-8')
    done = subprocess.run([sys.executable, script, name, name, 'measure', *ASKED], cwd=folder, env=ENV | env,
                          capture_output=True, timeout=600)
    assert done.returncode == 2, done.stderr.decode(errors='replace')
    assert f'next: dlmech report {name}/'.encode() in done.stdout
    refused = f'is no name of a file in this locale ({name}); set PYTHONUTF8=1, or a locale of UTF-8\n'
    assert done.stderr.endswith(refused.encode())
    want = dlmech.measure_run(dlmech.start(arch='vgg6', d=2, epochs=1, heads='ridge', layer=5,
                                           dataset=f'folder:{folder}/bilder', runs=str(folder/'UTF')))
    assert sorted(want.names) == sorted(NAMES)
    path, = (folder/name).iterdir()
    found, known = files_of(path), files_of(want.source.run.path)
    config, there = (json.loads(f.pop('config.json')) for f in (found, known))
    assert found == known
    assert config == there | dict(dataset=config['dataset'])  # digests and names among it
    labels = pd.read_csv(folder/f'{name}-report'/'data'/'labels.csv')
    assert labels.name.tolist() == want.names
    page = (folder/f'{name}-report'/'index.html').read_text(encoding='utf-8')
    for label in 'größe', '数字', 'plain &lt;b&gt;': assert label in page
