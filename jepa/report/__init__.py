"""One self-contained page about a run: `python -m jepa.report run=RUN_DIR`.

source   what a run left, and samples as its model sees them        blocks   what a page is made of
summary  words and numbers        curves, charts  lines and dots    gallery, answers  pictures
page     all of it, in order, into `page.html`
"""
