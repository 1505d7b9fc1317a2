"""What Sphinx is told of this house: docstrings are text with code in backticks, a comment beside a parameter
documents it (fastcore's docments reads them), formulas are MathML, which browsers draw by themselves."""
import inspect, re, warnings

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from fastcore.docments import docments

import dlmech.cli

CODE = re.compile(r'`([^`\n]+)`')


def _names() -> dict[str, str]:
    "Where what a user types is defined: {'measure': 'dlmech.measurement.measure', …}."
    return {name: f'dlmech.{path}' for name, path in dlmech.FROM.items()}


def as_role(code: str) -> str:
    "Code in a docstring: a link where it names what a user types, else as it is."
    if (name := code.removeprefix('dlmech.')) in _names(): return f':py:obj:`{code} <{_names()[name]}>`'
    if re.fullmatch(r'[A-Z]\w+', code): return f':py:obj:`{code} <.{code}>`'
    return f'``{code}``'


def as_rst(text: str) -> str:
    "A line of a docstring in Sphinx's language: code in backticks, all else as it stands."
    parts = CODE.split(text)
    return ''.join(as_role(p) if i % 2 else re.sub(r'([*|_\\])', r'\\\1', p) for i, p in enumerate(parts))


def translate(lines: list[str]) -> list[str]:
    "A docstring in Sphinx's language: a part that is set in becomes a block of code."
    out, inside = [], False
    for line in lines:
        set_in = line.startswith('    ') and (inside or not out or not out[-1].strip())
        if set_in and not inside: out += ['.. code-block:: python', '']
        inside = set_in or (inside and not line.strip())
        out.append(line if inside else as_rst(line))
    return out


def parameters(obj) -> list[str]:
    "A line for each parameter that has a comment beside it, and for what is given back."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of sections in docstrings of torch, which a class may inherit
        try: found = docments(obj, full=True)
        except (TypeError, ValueError, OSError, SyntaxError): return []
    said = {name: as_rst(' '.join(p.docment.split())) for name, p in found.items() if p.docment}
    return [f':returns: {text}' if name == 'return' else f':param {name}: {text}'
            for name, text in said.items() if name != 'self']


def process_docstring(app, what, name, obj, options, lines):
    "Called by autodoc with the lines of a docstring, which are changed in place."
    lines[:] = translate(lines)
    if str(getattr(obj, '__module__', None)).startswith('dlmech'):
        lines += ['', *parameters(obj)]


def _without_options(command):
    "A command's function with the names of its parameters alone: its options are told by `dlmech --help`."
    said = inspect.signature(command)
    bare = [p.replace(annotation=p.empty, default=p.empty) for p in said.parameters.values()
            if p.kind is not p.KEYWORD_ONLY]  # -v and -q, which every command has
    command.__signature__, command.__annotations__ = said.replace(parameters=bare), {}


def _inline(translator, node):
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _display(translator, node):
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app):
    "Wires the above."
    for name in dlmech.cli.__all__:
        if name.startswith('run_'): _without_options(getattr(dlmech.cli, name))
    app.connect('autodoc-process-docstring', process_docstring)
    app.add_html_math_renderer('mathml', (_inline, None), (_display, None))
    app.config.html_math_renderer = 'mathml'
