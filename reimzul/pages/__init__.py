# SPDX-License-Identifier: Apache-2.0
"""Pages that show the farm in a browser: static files, made from the history and the workers' heartbeats.

`page_kinds.py` has the table of pages. `index.py` is the daemon's own file: what lists and counts are made from, and
which pages have to be rendered. `daemon.py` follows the history and renders.
"""
