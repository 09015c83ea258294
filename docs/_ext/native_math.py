"""Equations as MathML: browsers draw them without a script from elsewhere."""

import re
from html import escape

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

logger = logging.getLogger(__name__)


def mathml(node, as_block):
    """Return an equation as MathML; where that fails, its source and a warning."""
    # Docutils does not know these sizes; MathML stretches brackets by itself.
    source = re.sub(r"\\[bB]igg?(?![a-zA-Z])", "", node.astext())
    try:
        return tex2mathml(source, as_block=as_block)
    except MathError as error:
        logger.warning("%s: %s", error, source, location=node)
        return f"<code>{escape(source)}</code>"


def visit_inline(self, node):
    """Write an equation within a line."""
    self.body.append(mathml(node, as_block=False))
    raise nodes.SkipNode


def visit_block(self, node):
    """Write an equation on lines of its own, with its number if it has one."""
    anchor = f' id="{node["ids"][0]}"' if node["ids"] else ""
    self.body.append(f'<div class="math"{anchor}>')
    if node["number"]:
        self.body.append(f'<span class="eqno">({node["number"]})</span>')
    self.body.append(mathml(node, as_block=True))
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app):
    """Register the renderer; conf.py chooses it by ``html_math_renderer``."""
    app.add_html_math_renderer(
        "native",
        inline_renderers=(visit_inline, None),
        block_renderers=(visit_block, None),
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
