"What comes in from outside and was silently wrong, or ended in an error of somebody else's."
import math, warnings
from pathlib import Path

import numpy as np, pytest, torch
from PIL import Image
from safetensors.torch import save_file

import dlmech
from dlmech.arch import layers_of
from dlmech.batches import as_images, as_labels, Batches
from dlmech.datasets import as_rgb, FileSet, get_data, load_folder, read_image
from dlmech.filter import fields, find_clusters, LabelSums, snr
from dlmech.layers import answer_of
from dlmech.model import start, train_or_load
from dlmech.probe import heads_of
from dlmech.run import check_int, check_labels, check_parameter, DlmechError, ParameterError, Parameters
from helpers import blobs, small_net

NAN, INF = float('nan'), float('inf')
TRAIN, TEST = blobs(80, 4), blobs(80, 4, 1)


def measure(**asked):
    return dlmech.measure(small_net(), TRAIN, TEST, **dict(heads='ridge', layers='5') | asked)


def heads(*shape: int, value: float|None = None):
    "Heads of layer 5, whose maps are (8, 5, 5)."
    return heads_of({'5': torch.randn(shape) if value is None else torch.full(shape, value)})


# ---- images

@pytest.mark.parametrize('end, mode', [('png', 'I;16'), ('tif', 'I;16'), ('tif', 'I;16B')])
def test_images_of_16_bits_keep_their_grey(tmp_path, end, mode):
    grey = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    im = Image.fromarray(grey)
    if mode == 'I;16B': im = Image.frombytes('I;16B', (8, 8), grey.astype('>u2').tobytes())
    im.save(tmp_path/f'a.{end}')
    with Image.open(tmp_path/f'a.{end}') as again: assert again.mode.startswith('I')
    assert np.abs(read_image(tmp_path/f'a.{end}', 8)[:, :, 0].numpy() - grey / 257).max() <= .51


@pytest.mark.parametrize('mode', ['F', 'I'])
def test_images_without_a_white_are_refused(tmp_path, mode):
    Image.new(mode, (8, 8), 1).save(tmp_path/'a.tif')
    with pytest.raises(DlmechError, match=f'mode {mode}, of which nobody says which is white'):
        read_image(tmp_path/'a.tif', 8)


def test_pictures_of_somebodys_data_set_are_as_they_look():
    palette = Image.new('P', (8, 8), 1)
    palette.putpalette([0, 0, 0, 255, 0, 51])
    x = as_images([palette, Image.new('RGB', (8, 8), (255, 0, 51))])
    assert x.shape == (2, 3, 8, 8)
    assert torch.equal(x[0], x[1])
    assert as_images([Image.new('L', (8, 8))]).shape == (1, 1, 8, 8)
    with pytest.raises(DlmechError, match='mode F'): as_images([Image.new('F', (8, 8))])
    with pytest.raises(ParameterError, match='images'): as_images([np.zeros((2, 2)), np.zeros((3, 3))])
    assert as_rgb(Image.new('1', (2, 2), 1)).getpixel((0, 0)) == (255, 255, 255)


def folder_of(path: Path, counts: dict[str, int]) -> Path:
    "Images in a folder for each label."
    for name, n in counts.items():
        (path/name).mkdir(parents=True)
        for i in range(n): Image.new('RGB', (8, 8), (40*i, 0, 0)).save(path/name/f'{i}.png')
    return path


@pytest.mark.parametrize('there', [('train',), ('test',), ('val',), ('train', 'valid'), ('Train', 'Test')])
def test_a_part_of_a_data_set_is_no_label(tmp_path, there):
    for part in there: folder_of(tmp_path/part, dict(cat=6, dog=6))
    with pytest.raises(DlmechError, match='holds only .* which is no label; it may hold train and test'):
        load_folder(tmp_path)


def test_one_label_is_refused_before_anything_is_made(tmp_path):
    folder_of(tmp_path/'data', dict(cat=10))
    with pytest.raises(DlmechError, match="there is one label, 'cat'"):
        start(dataset=f'folder:{tmp_path/"data"}', runs=str(tmp_path/'runs'))
    assert not (tmp_path/'runs').exists()


def test_labels_with_few_images_are_said_before_training(tmp_path):
    folder_of(tmp_path/'few', dict(cat=10, dog=5, owl=20))
    with pytest.warns(UserWarning, match=r'1 of 3 labels have under 5 training images: dog \(4\)'):
        get_data(f'folder:{tmp_path/"few"}')
    folder_of(tmp_path/'none', dict(cat=10, dog=4))
    with pytest.raises(DlmechError, match="label 'dog' has 4 training and 0 test images"):
        get_data(f'folder:{tmp_path/"none"}')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        get_data('digits')


def test_a_folder_of_which_nothing_can_be_read_is_one_sentence(tmp_path):
    for name in 'cat', 'dog':
        (tmp_path/name).mkdir()
        for i in range(6): (tmp_path/name/f'{i}.png').write_bytes(b'torn')
    for size in 32, 128:
        with warnings.catch_warnings(), pytest.raises(DlmechError, match='not one of .* images can be read'):
            warnings.simplefilter('ignore')
            data = get_data(f'folder:{tmp_path}', size=size)
            list(Batches(data.train, 4, workers=0))
    files = FileSet([str(tmp_path/'cat'/'0.png')], torch.tensor([0]), ['cat', 'dog'], 16)
    for _ in range(2):
        with pytest.raises(DlmechError, match='not one of 1 images'), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            list(Batches(files, workers=0))


# ---- numbers

@pytest.mark.parametrize('asked, said', [
    (dict(threshold=2), 'threshold: 2 is not possible'), (dict(threshold=NAN), 'threshold: nan is not'),
    (dict(threshold='.3'), 'threshold: '), (dict(seed=INF), 'seed: inf is not possible'),
    (dict(seed=-1), 'seed: -1'), (dict(batch=0), 'batch: 0 is not possible'), (dict(batch=INF), 'batch: inf'),
    (dict(batch=1.5), 'batch: 1.5'), (dict(largest_map=-1), 'largest_map: -1'), (dict(layers=5), 'layers: 5'),
    (dict(layers=[]), 'layers: '), (dict(layers=['5', 3]), 'layers: '),
    (dict(layers=['3', '3@2x2']), 'layers: 3 is named twice'),
    (dict(layers='5@2x3'), "layer: '5@2x3': after @ may stand a side"),
    (dict(layers='5@2x2,4x4'), "layer: '5@2x2,4x4'"), (dict(names=['a']), 'names: 1 names for 4 labels'),
    (dict(names=7), 'names: 7 is no list'), (dict(output=3), 'output: the network answers with one tensor'),
    (dict(device='tpu'), "device: there is no 'tpu'"),
])
def test_what_measure_cannot_be_asked_is_said(asked, said):
    with pytest.raises(DlmechError) as e: measure(**asked)
    assert str(e.value).startswith(said)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('given, said', [
    (heads(4, 8, 5, 5, value=NAN), 'not finite'), (heads(4, 8, 5, 5, value=INF), 'not finite'),
    (heads(1, 8, 5, 5), r'is \(1, 8, 5, 5\)'), (heads(3, 8, 5, 5), r'is \(3, 8, 5, 5\)'),
    (heads(5, 8, 5, 5), r'is \(5, 8, 5, 5\)'), (heads(4, 8, 25, 1), r'should be \(4, 8, 5, 5\)'),
    (heads(4, 7, 5, 5), r'should be \(4, 8, 5, 5\)'),
])
def test_heads_that_do_not_fit_are_refused(given, said):
    with pytest.raises(DlmechError, match=f'heads: that of 5 .*{said}'): measure(heads=given)


def test_a_network_that_is_none_is_refused():
    with pytest.raises(ParameterError, match='model: 3 is no torch module'): dlmech.measure(3, TRAIN, TEST)
    one = (TRAIN[0], TRAIN[1] * 0)
    with pytest.raises(DlmechError, match='model: it has 1 outputs'): dlmech.measure(small_net(1), one, one)
    maps = dict(out=torch.zeros(2, 3, 4, 4))
    with pytest.raises(DlmechError, match=r'not with \(2, 3, 4, 4\)'): answer_of(maps)


@pytest.mark.parametrize('kind', ['ridge', 'exact'])
def test_nan_in_the_images_is_said_with_every_kind_of_heads(kind):
    bad = TRAIN[0].clone()
    bad[7] = NAN
    with pytest.raises(DlmechError, match='5: its maps are not all finite numbers'):
        dlmech.measure(small_net(), (bad, TRAIN[1]), TEST, layers='5', heads=kind)


@pytest.mark.parametrize('K', [0, 1])
def test_snr_needs_two_labels(K):
    with pytest.raises(DlmechError, match='two or more are needed'): snr(1., 0., K)


def test_fields_of_tensors_that_do_not_belong_together_are_refused():
    for shape in (1, 3, 2, 2), (4, 2, 2, 2), (5, 3, 2, 2), (4, 3, 4, 1):
        with pytest.raises(DlmechError, match='label means are .* both should be'):
            fields(torch.ones(4, 3, 2, 2), torch.ones(shape))
    for threshold in 0, 1, 2, -1, NAN, None, 'a':
        with pytest.raises(ParameterError, match='threshold: '): find_clusters(torch.ones(1, 3, 3), threshold)


def test_label_sums_lose_no_digits_in_a_large_batch():
    "The mean of a million equal numbers is that number, however many come at once."
    for n in 1_000, 1_000_000:
        sums = LabelSums(2)
        sums.add(torch.full((n, 1, 1, 1), .1), torch.zeros(n, dtype=torch.int64))
        sums.add(torch.full((1, 1, 1, 1), 1.), torch.ones(1, dtype=torch.int64))
        assert sums.means()[0].item() == pytest.approx(torch.tensor(.1).double().item(), rel=1e-13)


# ---- parameters

@pytest.mark.parametrize('labels', [[0, 1.7], [0, NAN], [0, True], INF, '0,1.7', [[0], [1]], {0: 1}, (0, '')])
def test_labels_are_whole_numbers(labels):
    with pytest.raises(ParameterError, match='^labels: '): check_labels(labels)
    with pytest.raises(ParameterError, match='^labels: '): dlmech.data('digits', labels=labels)


@pytest.mark.parametrize('bad', [[.5], [NAN], [INF], [1e30], [1j]])
def test_labels_of_data_are_whole_numbers(bad):
    with pytest.raises(ParameterError, match='is no label'): as_labels(torch.tensor([*bad, 1]))


@pytest.mark.parametrize('seed', [2**53 + 1, str(2**53 + 1), np.int64(2**53 + 1), 2**63 - 1])
def test_large_seeds_are_exact(seed):
    assert check_int('seed', seed, 0) == int(seed)
    assert check_parameter('seed', seed) == int(seed)


def test_a_float_too_large_to_be_exact_is_refused():
    for check in (lambda v: check_int('seed', v, 0)), (lambda v: check_parameter('seed', v)):
        with pytest.raises(ParameterError, match='seed: '): check(2.**53 + 2)
        assert check(2.**53) == 2**53


def test_thresholds_equal_in_six_digits_have_folders_of_their_own(tmp_path):
    asked = dict(arch='vgg6', d=2, runs=str(tmp_path))
    a, b = (start(**asked, threshold=t).tables for t in (.4000001, .4000002))
    assert a != b
    assert start(**asked, threshold=.5).tables.name == 'threshold0.5'


@pytest.mark.parametrize('wrong', [INF, -INF, NAN, 1e300, 10**400, -1, None, [], {}, True, b'x', 1j, 'a\0b',
                                   'x' * 5000, torch.zeros(2), np.zeros(2)])
def test_every_parameter_refuses_nonsense_in_a_sentence(tmp_path, wrong):
    refused = 0
    for name in Parameters.__dataclass_fields__:
        try: start(**dict(arch='vgg6', d=2, runs=str(tmp_path/'runs')) | {name: wrong})
        except DlmechError as e:
            refused += 1
            assert str(e).startswith((name, 'labels', 'device')), str(e)
            assert '\n' not in str(e)
            assert len(str(e)) < 3000
    assert refused >= 16  # of 18: labels=None means all, and a seed may be large


def test_the_images_of_a_run_are_test_or_train(tmp_path):
    run = start(arch='vgg6', d=2, runs=str(tmp_path))
    with pytest.raises(ParameterError, match="images: there is no 'trian'"): run.averaged_over('trian')


@pytest.mark.parametrize('arch', ['regnet_x_400mf', 'regnet_y_400mf'])
def test_regnets_have_layers(arch):
    paths = layers_of(arch)
    assert paths[0] == 'stem'
    assert len(paths) > 10


def test_what_is_right_is_still_taken():
    assert not math.isnan(measure(threshold=np.float32(.25), batch=np.int64(40), layers=['5']).layers.snr[0])
    assert check_parameter('runs', Path('a')) == 'a'
    assert check_parameter('d', '16') == check_parameter('d', 16.) == 16


# ---- images that a network cannot take

Y = torch.arange(24) % 4


@pytest.mark.parametrize('shape', [(1, 16, 16), (3, 40, 40), (7,), ()])
def test_images_of_another_shape_are_said_with_whose_they_are(shape):
    x = torch.zeros(24, *shape)
    for images, name in (((x, Y), TEST), 'heads_on'), ((TRAIN, (x, Y)), 'fields_on'):
        with pytest.raises(DlmechError, match=f'^{name}: the network cannot take images of shape') as e:
            dlmech.measure(small_net(), *images, heads='ridge', layers='5')
        assert '\n' not in str(e.value)


def test_what_prunes_and_repairs_says_it_too():
    m, x = dlmech.measure(small_net(), TRAIN, TRAIN, heads='ridge'), (torch.zeros(24, 1, 16, 16), Y)
    d = dlmech.dilute(m.net, m, [1, 2], epochs=0)
    for work, name in ((lambda: dlmech.prune(m.net, m, x), 'data'),
                       (lambda: dlmech.repair(m.net, d, x), 'data'),
                       (lambda: dlmech.dilute(m.net, m, [1, 2], x), 'train'),
                       (lambda: dlmech.own_head(m.net, '5', x[0]), 'x')):
        with pytest.raises(DlmechError, match=f'^{name}: the network cannot take images of shape'): work()


def test_a_head_fits_maps_of_one_size():
    "A network that takes images of any size still has maps of a size."
    nn = torch.nn
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    large = torch.randn(24, 3, 40, 40, generator=torch.Generator().manual_seed(0)), Y
    with pytest.raises(DlmechError, match=r'fields_on: .* the maps of 1 are .6, 38, 38., for those of'):
        dlmech.measure(net, TRAIN, large, heads='ridge', layers='1')
    assert len(dlmech.measure(net, TRAIN, large, heads='ridge', layers='1@1x1')[1]) == 6


def test_images_of_different_sizes_are_said():
    images = [(torch.zeros(3, 16 + i % 2, 16), i % 4) for i in range(24)]
    with pytest.raises(DlmechError, match=r'images: those of a batch .* are .3, 16, 16., .3, 17, 16.;'):
        dlmech.measure(small_net(), images, images, heads='ridge')


@pytest.mark.parametrize('asked', [dict(net=3), dict(even=1), dict(layers=3), dict(images='five')])
def test_what_prune_cannot_be_asked_is_said(asked):
    m = dlmech.measure(small_net(), TRAIN, TRAIN, heads='ridge')
    with pytest.raises(ParameterError, match=f'^{next(iter(asked))}: '):
        dlmech.prune(**dict(net=m.net, m=m, data=TRAIN) | asked)


# ---- what was said too late, or not at all

def test_a_size_that_no_memory_holds_is_said_before_it_is_asked_for(monkeypatch):
    monkeypatch.setattr('dlmech.datasets.memory', lambda: 2e9)
    with pytest.raises(DlmechError, match=r'size: [\d,]+ images of 4096 x 4096 are \d+ GB, more than'):
        get_data('digits', size=4096)


@pytest.mark.parametrize('normal', ['0/0', '.5/-1', 'imagnet'])
def test_a_normal_that_cannot_be_is_said_before_a_folder_is_made(tmp_path, normal):
    with pytest.raises(ParameterError, match='^normal: '): start(runs=str(tmp_path/'runs'), normal=normal)
    assert not (tmp_path/'runs').exists()


@pytest.mark.parametrize('end', ['pth', 'safetensors'])
def test_weights_that_are_no_numbers_are_refused(tmp_path, end):
    net = dlmech.network('vgg6', 3, d=2)
    state = net.state_dict() | {'fc.1.weight': torch.full_like(net.fc[1].weight, NAN)}
    if end == 'pth': torch.save(state, tmp_path/'a.pth')
    else: save_file(state, tmp_path/'a.safetensors')
    r = start(arch='vgg6', d=2, labels=3, runs=str(tmp_path/'runs'), weights=str(tmp_path/f'a.{end}'))
    with pytest.raises(DlmechError, match='fc.1.weight holds numbers that are not finite'): train_or_load(r)


def test_a_folder_whose_name_is_no_text_has_a_name(tmp_path):
    "Bytes of another encoding, as an old archive leaves them."
    try: (tmp_path/'\udcff').mkdir()
    except OSError: pytest.skip('this file system takes text alone')
    folder_of(tmp_path, dict(cat=6))
    for i in range(6): Image.new('RGB', (8, 8), (40*i, 0, 0)).save(tmp_path/'\udcff'/f'{i}.png')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # of few images
        assert get_data(f'folder:{tmp_path}').names == ['cat', '?']
