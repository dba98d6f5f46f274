"""Put plotly.js and data into a page that needs no network and may be moved anywhere.

plotly.js is 4.8 MB of text. A page holds it deflated, in base64 (2 MB), and the browser inflates it
with `DecompressionStream`, which every browser has since 2023 and which works for local files.
"""

import base64
import html
import json
import zlib
from functools import lru_cache
from string import Template
from typing import Any

#: an icon within the page; the address in it is the name of SVG, escaped like the rest
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http%3A//www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect width='16' height='16' rx='3' fill='%230072B2'/%3E%3Cpath d='M3 4c1 5 4 8 10 9' "
    "fill='none' stroke='%23fff' stroke-width='1.5'/%3E%3Ccircle cx='5.6' cy='9' r='1.8' "
    "fill='%23E69F00'/%3E%3C/svg%3E"
)
_LOADER = """\
<script type="text/plain" id="plotly-deflated">$script</script>
<script>
"use strict";
function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}
async function loadPlotly() {
  const bytes = bytesOf(document.getElementById("plotly-deflated").textContent);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  return window.Plotly;
}
</script>
"""
_FIGURE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<link rel="icon" href="$icon">
<style>
body { margin: 0 auto; max-width: 1600px; padding: 16px; background: #fff; color: #1b1f24;
  font: 15px/1.5 system-ui, sans-serif; }
#figure { min-height: 480px; }
</style>
</head>
<body>
<main><div id="figure" role="img" aria-label="$title"></div></main>
<noscript>This figure is drawn by a script within this file; allow scripts to see it.</noscript>
<script type="application/json" id="data">$data</script>
$loader<script>
loadPlotly().then((plotly) => {
  const figure = JSON.parse(document.getElementById("data").textContent);
  return plotly.newPlot("figure", figure.data, figure.layout, {responsive: true});
});
</script>
</body>
</html>
""")


@lru_cache(maxsize=1)
def plotly_loader() -> str:
    """Return the HTML that holds plotly.js and defines ``loadPlotly()``, a promise of it."""
    from plotly.offline import get_plotlyjs

    packed = base64.b64encode(zlib.compress(get_plotlyjs().encode(), 9)).decode()
    return Template(_LOADER).substitute(script=packed)


def json_for_script(data: Any) -> str:
    """Return data as JSON that no text in it can end the script element of."""
    return escaped_json(json.dumps(data, ensure_ascii=False, separators=(",", ":")))


def escaped_json(text: str) -> str:
    """Return JSON text with what HTML or a script could read otherwise as escapes."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def figure_page(figure, title: str) -> str:
    """Return a page with one plotly figure.

    Args:
        figure: The plotly Figure.
        title: Title of the page.
    """
    return _FIGURE.substitute(
        title=html.escape(title),
        icon=ICON,
        data=escaped_json(figure.to_json()),
        loader=plotly_loader(),
    )
