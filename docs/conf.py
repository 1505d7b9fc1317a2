"""The site: sphinx-build -W -b html docs _docs/html. Nothing is executed: notebooks come with their outputs,
and pages.py writes what is made of tables before Sphinx reads anything."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import dlmech
import hooks, pages

project, copyright, author = 'dlmech', '2026 onwards, The dlmech developers', 'The dlmech developers'
version = release = dlmech.__version__
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx_copybutton', 'sphinx_design']
exclude_patterns = ['extra', 'made']
html_theme, html_title = 'furo', 'dlmech'
html_extra_path = ['extra']  # the report of a network, as it is
html_static_path = ['static']
html_css_files = ['site.css']
html_copy_source, html_show_sourcelink = False, False
html_theme_options = dict(sidebar_hide_name=False)

nb_execution_mode = 'off'
nb_merge_streams = True
nb_mime_priority_overrides = [('html', 'text/markdown', 0)]
myst_enable_extensions = ['colon_fence', 'deflist', 'dollarmath']
myst_heading_anchors = 3
suppress_warnings = ['mystnb.mime_priority']
copybutton_exclude = '.linenos, .gp, .go'

autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80


def link_notebooks(app, name, source):
    "Notebooks that a page names in backticks are links."
    if not name.startswith('notebooks/'): source[0] = pages.link_notebooks(source[0], '/notebooks/')


def setup(app):
    "Pages that are made, docstrings as they are written here, formulas without a script from elsewhere."
    pages.write_all(Path(app.srcdir))
    app.connect('source-read', link_notebooks)
    hooks.setup(app)
