"""Make what is made: run notebooks so that they are committed with their outputs, tidy and fold all of them,
clean, export, and write README.md from nbs/index.ipynb.

    python tests/refresh.py                 run none
    python tests/refresh.py 03_filter …     run these notebooks first (all: every one but those that need data
                                            fetched before)
"""
import base64, io, re, subprocess, sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from PIL import Image, ImageChops

TOP = Path(__file__).resolve().parent.parent
NBS = TOP/'nbs'


def readme() -> str:
    "README.md as nbs/index.ipynb says it: hidden cells dropped, pictures by their place in the repository."
    nb = nbformat.read(NBS/'index.ipynb', 4)
    nb.cells = [c for c in nb.cells if not c.source.startswith('#| hide')]
    for i, c in enumerate(nb.cells):  # of a cell that begins with echo: false only what it says is kept
        if c.source.startswith('#| echo: false'):
            nb.cells[i] = nbformat.v4.new_markdown_cell(c.outputs[0].data['text/markdown'])
    nb.metadata['language_info'] = {'name': 'python'}
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = text.replace('](images/', '](nbs/images/').strip()
    return f'<!-- made from nbs/index.ipynb by tests/refresh.py -->\n\n{text}\n'


def smaller(png: str) -> str:
    """A picture (PNG in base64) with a palette, if that makes it smaller: 24 or 48 colours do for curves,
    photographs and fields get 256."""
    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    if picture.mode == 'P': return png  # it has one already
    picture = picture.convert('RGB')
    for colours in 24, 48, 256:
        small = picture.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
        blocks = ImageChops.difference(picture, small.convert('RGB')).reduce(8)  # a pale area counts, too
        if max(most for _, most in blocks.getextrema()) < 20: break
    small.save(out := io.BytesIO(), 'png', optimize=True)
    return min(png, base64.b64encode(out.getvalue()).decode(), key=len)


def tidy(nb: nbformat.NotebookNode):
    """Outputs as they are kept: no progress bars, pictures with a palette, a table once (as HTML, a line for
    each row), where a notebook as it is run also holds it as text."""
    for c in nb.cells:
        if c.cell_type != 'code': continue
        c.outputs = [o for o in c.outputs if o.get('name') != 'stderr' and o.get('data') != {}]
        for data in (o.data for o in c.outputs if 'data' in o):
            if 'image/png' in data: data['image/png'] = smaller(data['image/png'])
            if '<table' not in data.get('text/html', ''): continue
            data.pop('text/plain', None)
            html = re.sub(r'<style scoped>.*?</style>', '', data['text/html'], flags=re.S)
            data['text/html'] = re.sub(r'>\s*\n\s*<(?!tr)', '><', html)


def execute(name: str):
    "Runs a notebook where JupyterLab would, and tidies its outputs."
    from nbclient import NotebookClient
    path = NBS/f'{name}.ipynb'
    nb = nbformat.read(path, 4)
    NotebookClient(nb, timeout=3600, store_widget_state=False,  # half a megabyte for sliders without a kernel
                   resources={'metadata': {'path': NBS}}).execute()
    tidy(nb)
    nbformat.write(nb, path)


# notebooks that tell an answer first: what computes it is folded
TELLING = ('01_model', '02_probe', '03_causal', '03_filter', '03_heads', '03_imagenet', '03_resnets',
           '03_vgg16_cifar10', '04_dilution', '05_reproduction', '05_universality', '06_explore')
FOLDED = *TELLING, '03_measure'  # its first cells are what a user types; its source is folded like theirs


def fold(nb: nbformat.NotebookNode, telling: bool):
    """Folds, for JupyterLab and the site, what a reader of the answer need not see: the exported source, and
    what computes the answer. Parameters and demos stay open."""
    for c in nb.cells:
        telling = telling and not c.source.startswith('# How it works')
        hidden = c.source.startswith('#|') or telling and 'parameters' not in c.metadata.get('tags', [])
        c.metadata.pop('jupyter', None)
        if c.cell_type == 'code' and hidden: c.metadata['jupyter'] = {'source_hidden': True}


if __name__ == '__main__':
    names = sys.argv[1:]
    if names == ['all']:
        names = [p.stem for p in sorted(NBS.glob('*.ipynb'))
                 if 'skip_exec: true' not in p.read_text(encoding='utf-8')]
    for name in names:
        print(name, flush=True)
        execute(name)
    for path in (NBS/'images').glob('*.png'):
        path.write_bytes(base64.b64decode(smaller(base64.b64encode(path.read_bytes()).decode())))
    for path in sorted(NBS.glob('*.ipynb')):
        tidy(nb := nbformat.read(path, 4))
        if path.stem in FOLDED: fold(nb, path.stem in TELLING)
        nbformat.write(nb, path)
    for tool in ('nbdev_clean', 'nbdev_export'): subprocess.run([tool], cwd=TOP, check=True)
    (TOP/'README.md').write_text(readme(), encoding='utf-8')
