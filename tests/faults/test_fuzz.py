"""Every public function of `dlmech`, and the main ones of its modules, called with whatever comes: what comes
out is an answer or a sentence, never somebody else's error. Quick: 30 calls each, or `DLMECH_FUZZ=2000`."""
import inspect, math, os, re
from collections import Counter
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt, pytest, torch
from hypothesis import given, HealthCheck, Phase, settings, strategies as st

import dlmech
from dlmech.arch import read_normal, read_plan
from dlmech.batches import as_images, as_labels, as_set, images_and_labels
from dlmech.datasets import choose_labels
from dlmech.filter import fields, find_clusters, LabelSums, normalised, snr
from dlmech.layers import answer_of, check_layers, layer_numbers, LayerName
from dlmech.model import start
from dlmech.null import measure_fields
from dlmech.probe import heads_of
from dlmech.pruning.afcc import masked
from dlmech.pruning.scores import keep_top
from dlmech.run import check_int, check_labels, check_parameter, check_share, DlmechError, Parameters
from helpers import blobs, small_net
from noted import FUZZ, replace_rows

EXAMPLES = int(os.environ.get('DLMECH_FUZZ', 30))
MANY = EXAMPLES > 100  # where the first that fails is told as it is, and no smaller one is looked for
fuzz = settings(max_examples=EXAMPLES, deadline=None, derandomize=not MANY, database=None,
                phases=[Phase.generate] if MANY else list(Phase), suppress_health_check=list(HealthCheck))

ODD = [0, 1, -1, 2**53, 2**63, 10**40, math.nan, math.inf]
WORDS = ['all', 'last', 'layers.5', '5@2x3', '3', 'a\0b', '../..', '']
KINDS = [torch.float32, torch.uint8, torch.int64, torch.bool, torch.complex64, math.nan]
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from(ODD), st.booleans())
texts = st.one_of(st.text(max_size=30), st.sampled_from(WORDS))
shapes = st.lists(st.integers(0, 4), max_size=5).map(tuple)
tensors = st.builds(lambda shape, kind: torch.full(shape, kind) if isinstance(kind, float) else
                    torch.zeros(shape, dtype=kind), shapes, st.sampled_from(KINDS))
plain = st.one_of(st.none(), numbers, texts, st.binary(max_size=9), st.complex_numbers(), tensors,
                  tensors.map(lambda t: t.numpy()), st.just(object()), st.just(print), st.just(float))
anything = st.recursive(plain, lambda inner: st.one_of(st.lists(inner, max_size=4), st.tuples(inner, inner),
                                                       st.dictionaries(texts, inner, max_size=3)),
                        max_leaves=6)


CALLED: Counter = Counter()  # how often each function was


def call(f, *args, **asked):
    """What `f` answers; None where it said in a sentence why it does not. Anything else is raised, but a
    TypeError of a wrong signature."""
    CALLED[f'{f.__module__}.{f.__qualname__}'] += 1
    try: return f(*args, **asked)
    except DlmechError as e:
        assert str(e).strip(), 'a sentence says something'
        assert '\n' not in str(e), str(e)
        assert len(str(e)) < 4000, str(e)[:200]
    except TypeError as e:
        if not re.search(r'argument|positional', str(e)) or e.__traceback__.tb_next.tb_next: raise


@cache
def measured() -> dlmech.Measurement:
    "A small measurement over training images."
    data = blobs(80, 4)
    return dlmech.measure(small_net(), data, data, heads='ridge')


@cache
def finished():
    "A small finished run."
    run = start(arch='vgg6', d=2, epochs=1, labels=3, layer='all', heads='ridge', runs=mkdtemp())
    dlmech.measure_run(run)
    return run


@pytest.fixture(scope='module', autouse=True)
def kept(request):
    "How often each was called is kept in the slow part."
    before = request.session.testsfailed
    yield
    if EXAMPLES < int(FUZZ) or request.session.testsfailed > before: return
    replace_rows('test_fuzz', '', [dict(of=name, count=n) for name, n in CALLED.items() if n >= EXAMPLES])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "Whatever is written is written here, and nothing is fetched."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('DLMECH_DATA', str(tmp_path/'data'))
    def no_network(*a, **k): raise OSError('no network')
    monkeypatch.setattr('socket.socket.connect', no_network)


# ---- what a user types

@fuzz
@given(name=st.sampled_from(list(Parameters.__dataclass_fields__)), value=anything)
def test_start(tmp_path, name, value):
    asked = dict(arch='vgg6', d=2, runs=str(tmp_path/'runs'))
    run = call(start, **asked | {name: value})
    if run is None: return
    p = run.params
    assert type(p.threshold) is float
    assert 0 < p.threshold < 1
    assert all(type(getattr(p, k)) is int for k in ('d', 'seed', 'epochs', 'size'))
    assert run.data.K >= 2
    if isinstance(value, (int, float)) and name in ('seed', 'epochs'): assert getattr(p, name) == value


@fuzz
@given(asked=st.dictionaries(st.sampled_from(['labels', 'seed', 'valid', 'size', 'root']), anything))
def test_data(asked):
    if isinstance(asked.get('size'), (int, float)) and asked['size'] > 64: return  # it would take long
    data = call(dlmech.data, 'digits', **asked)
    if data is not None: assert data.K == len(data.names) >= 2


@fuzz
@given(name=anything)
def test_names(name):
    for f in dlmech.data, dlmech.load, dlmech.open: call(f, name)
    assert len(dlmech.zoo()) > 0


ASKED = 'layers names heads threshold batch seed device output normal largest_map'.split()


@fuzz
@given(asked=st.dictionaries(st.sampled_from(ASKED), anything, min_size=1, max_size=2))
def test_measure(asked):
    data = blobs(24, 4)
    m = call(dlmech.measure, small_net(), data, data, **dict(layers='5', heads='ridge') | asked)
    if m is None: return
    assert m.K == 4
    assert 0 < m.threshold < 1
    assert m.layers.snr.notna().all()


@fuzz
@given(model=anything, heads_on=anything, fields_on=anything)
def test_measure_of_anything(model, heads_on, fields_on):
    call(dlmech.measure, model, blobs(8, 4), blobs(8, 4))
    for pair in (heads_on, blobs(24, 4)), (blobs(24, 4), fields_on):
        call(dlmech.measure, small_net(), *pair, layers='5', heads='ridge')


@fuzz
@given(weight=tensors)
def test_measure_with_given_heads(weight):
    m = call(dlmech.measure, small_net(), blobs(24, 4), blobs(24, 4), heads=heads_of({'5': weight.float()}))
    assert m is None or weight.shape == (4, 8, 5, 5)


PRUNE = 'keep', 'layers', 'score', 'repair', 'even', 'images', 'seed', 'score_on'


@fuzz
@given(asked=st.dictionaries(st.sampled_from(PRUNE), anything))
def test_prune(asked):
    found = call(dlmech.prune, measured().net, measured(), blobs(80, 4), **asked)
    if found is not None: assert found[1].kept.min() >= 1


@fuzz
@given(layers=anything, epochs=anything)
def test_dilute(layers, epochs):
    if isinstance(epochs, (int, float, str)) and epochs not in (0, '0'):
        with suppress(ValueError, OverflowError):
            if 0 < int(float(epochs)): return  # it may be asked to train for years
    call(dlmech.dilute, measured().net, measured(), layers, blobs(80, 4), epochs=epochs)


@fuzz
@given(name=st.sampled_from(['arch', 'K', 'd', 'seed', 'size', 'plan', 'normal', 'weights']), value=anything)
def test_network(name, value):
    net = call(dlmech.network, **dict(arch='vgg6', K=3, d=2) | {name: value})
    if net is not None: assert net.eval()(torch.zeros(1, 3, 32, 32)).ndim == 2 or name == 'size'


def not_there(value):
    "A text that can be no path, so that nothing is written; what is no text stays."
    return f'{value}\0' if isinstance(value, str) else value


@fuzz
@given(layer=anything, unit=anything)
def test_measurement(layer, unit):
    m = measured()
    part = call(m.__getitem__, layer)
    if part is not None: call(part.field, unit)
    call(m.number, layer)
    call(m.save, not_there(unit))
    call(m[1].card, unit)
    plt.close('all')


@fuzz
@given(layers=anything)
def test_measure_run(layers):
    for asked in (layers,), (finished(), layers): m = call(dlmech.measure_run, *asked)
    if m is not None: assert len(m) == 5


OPEN = 'model', 'images', 'threshold', 'images_of', 'root', 'device'


@fuzz
@given(name=st.sampled_from(OPEN), value=anything)
def test_open(name, value):
    m = call(dlmech.open, finished().path, **{name: value})
    if m is not None: assert m.layers.snr.notna().all()
    if m is not None and name == 'threshold': assert m.threshold == .3 == value


@fuzz
@given(path=anything, x=anything)
def test_own_head(path, x):
    net = small_net()
    for asked in (path, '5', blobs(4, 4)[0]), (net, path, blobs(4, 4)[0]), (net, '5', x):
        heads = call(dlmech.own_head, *asked)
    if heads is not None: assert heads.weight('5').shape == (4, 8, 5, 5)


@cache
def diluted():
    "A network under masks."
    torch.manual_seed(0)
    return masked(small_net(), {'4': torch.rand(8, 6, 3, 3) > .5})


REPAIR = 'net', 'd', 'data', 'images', 'penalty', 'whole', 'bias', 'seed', 'batch'


@fuzz
@given(name=st.sampled_from(REPAIR), value=anything)
def test_repair(name, value):
    found = call(dlmech.repair, **dict(net=small_net(), d=diluted(), data=blobs(24, 4)) | {name: value})
    if found is not None: assert (found.net[4].weight[~diluted().masks['4']] == 0).all()


@fuzz
@given(value=anything)
def test_report_and_explore(value):
    call(dlmech.explore, value)
    call(dlmech.report, value)
    for name in list(inspect.signature(dlmech.report).parameters)[1:]:
        if value is not None: call(dlmech.report, measured(), **{name: not_there(value)})
    plt.close('all')


def test_every_name_is_called_here():
    said = set(re.findall(r'dlmech\.(\w+)', Path(__file__).read_text()))
    assert set(dlmech.__all__) - {'DlmechError', 'start', 'zoo'} <= said


# ---- the main functions of the modules

ONE = {f.__name__: f for f in (check_labels, check_layers, read_normal, as_labels, as_images, as_set,
                               images_and_labels, answer_of)}


@fuzz
@given(value=anything, name=st.sampled_from(list(ONE)))
def test_functions_of_one_value(name, value): call(ONE[name], value)


@fuzz
@given(value=anything, low=st.integers(-5, 5))
def test_checks(value, low):
    for name in Parameters.__dataclass_fields__: call(check_parameter, name, value)
    n = call(check_int, 'n', value, low)
    if n is not None:
        assert n >= low
        assert str(value).strip() in (str(n), f'{n}.0') or n == value or float(value) == n
    call(layer_numbers, value, ['layers.1', 'layers.2'])
    call(check_share, 'share', value)


@fuzz
@given(text=texts, labels=anything)
def test_texts(text, labels):
    for f in read_plan, LayerName.read, read_normal: call(f, text)
    chosen = call(choose_labels, labels, 10, 0)
    if chosen is not None: assert 2 <= len(set(chosen)) == len(chosen) <= 10


@fuzz
@given(means=tensors, weight=tensors, threshold=numbers)
def test_fields(means, weight, threshold):
    if means.is_complex() or weight.is_complex(): return
    M = call(fields, means, weight)
    if M is None: return
    assert means.shape == weight.shape
    found = call(find_clusters, normalised(M), threshold) if M.numel() else None
    if found is not None: assert (found.internal >= 0).all()


@fuzz
@given(K=st.integers(0, 4), C=st.integers(1, 3), threshold=numbers, seed=st.integers(0, 2**40))
def test_tables_of_fields(K, C, threshold, seed):
    M = torch.randn(C, K, K, generator=torch.Generator().manual_seed(seed)).double()
    wins = torch.ones(C, K, K, dtype=torch.int64)
    found = call(measure_fields, [(slice(0, C), M)], wins, threshold, 20) if K else None
    if found is not None: assert len(found[0]) == C
    call(snr, float(C), 1., K)


@fuzz
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4), scale=st.sampled_from([1e-30, 1., 1e30]))
def test_sums_do_not_know_how_images_come(sizes, scale):
    g = torch.Generator().manual_seed(sum(sizes))
    x, y = torch.randn(sum(sizes) + 2, 2, 1, 2, generator=g) * scale, torch.arange(sum(sizes) + 2) % 2
    whole, parts = LabelSums(2), LabelSums(2)
    whole.add(x, y)
    for a, b in zip(x.split([*sizes, 2]), y.split([*sizes, 2])): parts.add(a, b)
    assert torch.allclose(whole.means(), parts.means(), rtol=1e-12, atol=0)


@fuzz
@given(fraction=anything, n=st.integers(1, 9))
def test_keep_top(fraction, n):
    keep = call(keep_top, torch.arange(float(n)), fraction)
    if keep is not None: assert 1 <= keep.sum() <= n
