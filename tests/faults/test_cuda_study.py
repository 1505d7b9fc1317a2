"""The studies, and what else of looking and pruning takes a network, tensors or a device, on a device that is
not there (`pretended.py`): what comes out is what the CPU says. `test_cuda.py` has the rest."""
import copy, shutil
from importlib.util import find_spec

import pandas as pd, pytest

import dlmech, dlmech.run
from dlmech.causal import causal
from dlmech.look.beside import label_changes
from dlmech.look.explore import falls_of_one
from dlmech.look.views import recounted
from dlmech.measurement import measure_run
from dlmech.model import start, train_or_load
from dlmech.study.claims import measure_named, NamedNetwork
from dlmech.study.compare import (AFCC, Calibrated, cut_study, CUTS, DEALT, dilution_study, end_study, FIVE,
                                  GLOBAL, head_study, kernel_study, KernelsBy, latency_study, LIBRARY,
                                  removal_study, repair_study, scratch_study, Subject)
from dlmech.study.controls import measure_control
from dlmech.study.dynamics import measure_dynamics
from dlmech.study.universality import sweep
from helpers import linked_net, TINY
from pretended import Pretended, There

ASKED = TINY | dict(layer='all', heads='ridge', labels=[0, 3, 7])
pytestmark = pytest.mark.filterwarnings('ignore::dlmech.run.DlmechWarning')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A small run, finished on the CPU."
    r = start(**ASKED, runs=str(tmp_path_factory.mktemp('runs')))
    for images in 'test', 'train': measure_run(r.averaged_over(images))
    return r


@pytest.fixture
def both(monkeypatch):
    "Gives a function that does something on the CPU and then there, where `auto` leads, and gives both."
    def do(work):
        here = work('cpu')
        with Pretended('lazy') as mode, monkeypatch.context() as m:
            m.setattr(dlmech.run, 'get_device', lambda name='auto': mode.device)
            return here, work('there')
    return do


def same(here: pd.DataFrame, there: pd.DataFrame) -> None:
    "Whether two tables are the same, but for times."
    keep = [c for c in here if not ('faster' in c or 'seconds' in c)]
    pd.testing.assert_frame_equal(here[keep], there[keep], rtol=1e-3, atol=1e-4)


def on(run, where: str, tmp_path):
    "The run as it is, or a copy of it there."
    if where == 'cpu': return run
    shutil.copytree(run.path, tmp_path/'there'/run.path.name)
    again = start(**ASKED, runs=str(tmp_path/'there'))
    assert again.device.type == 'lazy'
    assert type(next(train_or_load(again).parameters())) is There
    return again


def studies(run) -> pd.DataFrame:
    "A row or two of each comparison."
    s = Subject(run, [4, 5], images=100)
    library = LIBRARY[:1] if find_spec('torch_pruning') else []
    every = [removal_study(s, ['joint field', *library], [.5], ['zero', 'mean'], [0, 1]),
             dilution_study(s, [AFCC, DEALT, 'Wanda', GLOBAL], [.3], [1]), scratch_study(s, [FIVE]),
             end_study(s, [KernelsBy(AFCC, .3)], whole=True), head_study(s),
             latency_study(s, [KernelsBy(AFCC, .5)], 1)]
    return [study.fill() for study in every]


def test_comparisons_there_are_those_of_the_cpu(run, both, tmp_path):
    for here, there in zip(*both(lambda where: studies(on(run, where, tmp_path)))): same(here, there)


def repairs(run, top) -> list[pd.DataFrame]:
    "A row or two of each study of repairs."
    net, data, paths = train_or_load(run), run.data, ['layers.4', 'layers.5']
    make = lambda seed: Calibrated(net, data, paths, seed, 100, 100)
    whole = lambda seed: Calibrated(net, data, paths, seed, 100, 100, whole=True)
    return [repair_study(top/'r.csv', 'n', make, ['Wanda'], ['label means', 'ridge'], [.5], [0]).fill(),
            cut_study(top/'c.csv', 'n', whole, 'last', [('multiply-adds', .8)], list(CUTS), [0]).fill(),
            kernel_study(top/'k.csv', 'n', '4 to 5', make, [0., .3], [AFCC, 'Wanda'], [0]).fill()]


def test_repairs_there_are_those_of_the_cpu(run, both, tmp_path):
    work = lambda where: repairs(on(run, where, tmp_path), tmp_path/f'of-{where}')
    for here, there in zip(*both(work)): same(here, there)


@pytest.mark.parametrize('network', ['untrained', pytest.param('shuffled', marks=pytest.mark.slow)])
def test_controls_there_are_those_of_the_cpu(both, tmp_path, network):
    asked = {k: v for k, v in ASKED.items() if k != 'layer'}
    work = lambda where: measure_control(network, 3, 30, runs=str(tmp_path/where), **asked)
    for here, there in zip(*both(work)): same(here, there)


PLAIN = {k: v for k, v in ASKED.items() if k not in ('layer', 'labels')}


def test_claims_and_sweeps_there_are_those_of_the_cpu(both, tmp_path):
    def work(where):
        runs, file = dict(runs=str(tmp_path/where)), tmp_path/where/'claims.csv'
        named = NamedNetwork('tiny', PLAIN | dict(labels=3))
        claims = measure_named(named, path=file, then=lambda layer: causal(layer, n=30), **runs)
        return pd.DataFrame(claims), sweep([3], 1, **PLAIN, **runs)
    for here, there in zip(*both(work)): same(here, there)


@pytest.mark.slow
def test_dynamics_there_are_those_of_the_cpu(both, tmp_path):
    same(*both(lambda where: measure_dynamics(tmp_path/where/'d.csv', [0], [0, 1], labels=3, **PLAIN,
                                              runs=str(tmp_path/where))))


def looks(m, other) -> dict:
    "What a page or a slider asks of two measurements."
    falls = falls_of_one(m, 2, 0)
    return dict(changes=label_changes(m, other, [1, 2]).astype(str), again=recounted(m, .5)[2].filters,
                falls=pd.DataFrame({k: v.ravel() for k, v in falls.items()}))


def test_what_is_shown_there_is_what_the_cpu_shows(both, tmp_path):
    net, data = linked_net()
    def work(where):
        there = copy.deepcopy(net).to('lazy' if where == 'there' else 'cpu')
        m, other = (dlmech.measure(there, data, data, heads='ridge', threshold=t) for t in (.3, .5))
        assert dlmech.report(m, tmp_path/where, against=other).exists()
        return looks(m, other)
    here, there = both(work)
    for name in here: same(here[name], there[name])
