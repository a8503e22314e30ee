"""`python -m benchmarks.reporting.visit ROUNDS VIEW`: seconds of one visit to the live page after another, as JSON.

Nothing is imported before the first visit that the page itself does not import. OTKD_RUNS names the folder.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

APP = Path(__file__).resolve().parents[2] / "dashboards" / "app.py"
LIMIT_S = 600.0


def visit(view: str) -> float:
    """Seconds until a new session has all of a view.

    Raises:
        RuntimeError: the page has failed or lacks something, with what it said.
    """
    begin = time.perf_counter()
    from streamlit.testing.v1 import AppTest

    page = AppTest.from_file(str(APP), default_timeout=LIMIT_S)
    page.query_params["view"] = view
    page.run()
    seconds = time.perf_counter() - begin
    if page.exception:
        raise RuntimeError(f"the page failed:\n{page.exception[0].value}")
    texts = [part.proto.body for part in page.get("html") if "<style>" not in part.proto.body]
    whole = any(text.startswith('<p class="otkd otkd-small">Read ') for text in texts)
    if not whole or any("otkd-notice" in text for text in texts) or view not in page.query_params["view"]:
        raise RuntimeError("the page is not whole:\n" + "\n".join(texts))
    return seconds


if __name__ == "__main__":
    print(json.dumps([visit(sys.argv[2]) for _ in range(int(sys.argv[1]))]), flush=True)
    os._exit(0)  # at once: tearing the sweep down takes long
