"""The page of a report in a real browser, where there is one: headless Chromium."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from sdunroll.report.collect import Record
from sdunroll.report.grouping import Method
from sdunroll.report.page import page
from sdunroll.report.table import Cell, Column, Table

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

# collects errors from the first line on, and after loading sorts a table and enlarges a figure
PROBE = """<script>
const errors = [];
addEventListener('error', event => errors.push(String(event.message)));
for (const kind of ['error', 'warn']) console[kind] = (...words) => errors.push(words.join(' '));
addEventListener('load', () => {
  const root = document.documentElement, table = document.querySelector('table');
  const first = () => [...table.tBodies[0].rows].map(row => row.children[1].dataset.value);
  const button = table.querySelectorAll('th button')[1];
  button.click(); const up = first(); button.click(); const down = first();
  document.querySelector('figure img').click();
  const enlarged = document.querySelector('dialog').open;
  const overflow = root.scrollWidth - root.clientWidth;
  document.querySelector('dialog').click();
  const colours = [getComputedStyle(document.body).color, getComputedStyle(root).colorScheme];
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  parent.postMessage(JSON.stringify({errors, up, down, enlarged, overflow, dark,
    width: innerWidth, after: document.querySelector('dialog').open, colours}), '*');
});
</script>"""
FRAME = """<!doctype html><iframe src="index.html" style="width:{width}px;height:900px;border:0">
</iframe><pre></pre><script>addEventListener('message', event => {{
document.querySelector('pre').textContent = event.data; }});</script>"""


def a_page(figure: Path) -> str:
    names = ["constrained=true constraint=gradient training.noise_level=1", "constrained=false"]
    columns = [
        Column(f"layer {layer}", [Cell(10.0 / layer, 0.1, 3), Cell(9.0, 0.1, 3)], 3, "low")
        for layer in range(1, 16)
    ]
    table = Table("layers", "Anytime use: the distance.", names, columns, axis="layer")
    config = {"seed": 0, "training": {}, "data": {}, "note": "a_long_word_" * 40}
    provenance = {"overrides": ["problem=lista"], "command": "sdunroll train"}
    records = [Record(Path("outputs/train/run"), config, provenance, summary={})]
    methods = [Method(name, records) for name in names]
    return page([table], {"layers": figure}, methods, records, ["synthetic faces"])


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [380, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_in_chromium(tmp_path, width, dark):
    from matplotlib.figure import Figure

    picture = tmp_path / "figure.png"
    Figure().savefig(picture)
    text = a_page(picture).replace("<head>", f"<head>{PROBE}", 1)
    (tmp_path / "index.html").write_text(text)
    (tmp_path / "frame.html").write_text(FRAME.format(width=width))
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", scheme]
    command += ["--window-size=1600,1000", "--virtual-time-budget=5000", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(unescape(re.search("<pre>(.*)</pre>", done.stdout, re.S).group(1)))
    assert found["errors"] == []
    assert found["width"] == width
    assert found["overflow"] <= 0
    assert found["dark"] is dark
    assert found["up"] == ["9.0", "10.0"]
    assert found["down"] == ["10.0", "9.0"]
    assert found["enlarged"] is True
    assert found["after"] is False
