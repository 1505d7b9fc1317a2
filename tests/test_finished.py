"""A measurement comes with the package: it shows what was measured, and nothing is written beside it."""
import matplotlib.pyplot as plt, nbformat, pandas as pd, pytest, torch

import dlmech
from dlmech import cli, measurement, run
from dlmech.causal import causal_files
from dlmech.filter import find_clusters, normalised
from dlmech.look.views import folder_of
from dlmech.measurement import FINISHED
from dlmech.model import ZOO
from dlmech.run import clusters_of, DlmechError, ParameterError
from experiments.finished import finish

NAME = 'vgg16-cifar10-d64-brief10-seed0'


@pytest.fixture(scope='module')
def m(): return dlmech.open(f'zoo:{NAME}')


def test_it_is_the_network_of_the_zoo_and_small(m):
    pd.testing.assert_frame_equal(m.layers, pd.read_csv(ZOO/f'{NAME}-layers.csv'))
    assert sum(f.stat().st_size for f in (FINISHED/NAME).iterdir()) < 6e6
    assert (len(m), m.K, sum(map(len, m))) == (13, 10, 4224)
    assert m[13].head.shape == (10, 512, 1, 1)


def test_its_fields_have_the_clusters_of_its_tables(m):
    for part in m:
        picked = find_clusters(normalised(part.fields), m.threshold).cluster
        for labels, row in zip(picked.tolist(), part.filters.itertuples()):
            found = [[i for i, c in enumerate(labels) if c == k] for k in range(max(labels) + 1)]
            assert found == [list(c) for c in clusters_of(row)]


def test_its_images_are_those_of_its_filters(m):
    shown = {int(i) for part in m for i in part.top['image'].flatten() if i >= 0}
    assert shown == set(range(len(m.images)))
    assert m.images.images.shape == (len(shown), 32, 32, 3)
    assert m.images.images.float().std() > 30
    last = m[13]
    told = last.filters[(last.filters.q_value <= .05) & (last.filters.n_labels == 1)]
    own = [int(m.images.labels[last.top['image'][f, 0]]) == int(labels)
           for f, labels in zip(told['filter'], told.labels)]
    assert sum(own) / len(own) > .7  # .1 by chance: the label it selects is that of its first image
    plt.close(last.card(int(told['filter'].iloc[0])))


def test_nothing_is_written_into_the_package(m):
    with pytest.raises(DlmechError, match='name a folder with out'): dlmech.report(m)
    with pytest.raises(DlmechError, match='this head does not come with the package'): _ = m[1].head
    assert folder_of(m) is None
    assert causal_files(m[13]) is None


def test_its_sliders_open_from_a_terminal(monkeypatch, tmp_path):
    served = []
    monkeypatch.setattr(cli, 'serve', lambda *asked: served.append(asked))
    monkeypatch.setattr(run, 'base', lambda: tmp_path)
    assert cli.main(['explore', 'zoo:vgg16-cifar10', '--no-browser']) == 0
    path = tmp_path/'vgg16-cifar10-explore.ipynb'
    assert served == [(path, 'jupyterlab', ['--no-browser'])]
    cell = nbformat.read(path, 4).cells[1].source
    assert "dlmech.open('zoo:vgg16-cifar10'" in cell
    assert cli.main(['explore', 'zoo:vgg99']) == 2
    assert [f.name for f in tmp_path.iterdir()] == [path.name]


def test_a_name_that_means_none_is_refused():
    with pytest.raises(ParameterError, match=f'zoo:vgg99 means no measurement; it may be .*{NAME}'):
        dlmech.open('zoo:vgg99')


def test_what_a_run_becomes_is_the_run(tmp_path, monkeypatch):
    run = dlmech.start(arch='vgg6', d=2, layer='all', epochs=1, heads='ridge', runs=str(tmp_path))
    made = dlmech.measure_run(run)
    monkeypatch.setattr(measurement, 'FINISHED', tmp_path/'finished')
    finish(made, tmp_path/'finished'/made.title)
    again = dlmech.open(f'zoo:{made.title[:4]}')
    pd.testing.assert_frame_equal(again.layers, made.layers)
    for n in 1, 5:
        assert torch.allclose(again[n].fields, made[n].fields, rtol=1e-6, atol=1e-9)
        for f in range(len(made[n])):
            old, new = (x[n].top['image'][f].tolist() for x in (made, again))
            assert [run.data.test.labels[i] for i in old] == [again.images.labels[i] for i in new]
