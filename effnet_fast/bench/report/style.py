"""The page's style sheet, and which colour a provider has everywhere."""

from __future__ import annotations

from ..providers import OURS, is_ours

#: provider -> colour on a light and on a dark page. The package's own are warm, the others cool.
COLORS = {
    "eager": ("#6b7785", "#9aa5b1"),
    "eager-channels-last": ("#3c6fb0", "#6fa3e0"),
    "native-depthwise": ("#7d6a3f", "#c2a96b"),
    "compile": ("#2f8f5b", "#55c387"),
    "compile-max-autotune": ("#0d6e6e", "#35b5b5"),
    "inductor": ("#343a40", "#dee2e6"),
    "inductor-channels-last": ("#862e9c", "#da77f2"),
    "cuda-graph": ("#7a53b5", "#b294e6"),
    "onnxruntime": ("#1488a8", "#4cc3e0"),
    "openvino": ("#4b46a8", "#8f8bf0"),
    "tensorrt": ("#5f8f00", "#9fce3c"),
    OURS: ("#d9480f", "#ff7a45"),
    f"{OURS}-cpu": ("#d9480f", "#ff7a45"),
    f"{OURS}-cuda": ("#c2255c", "#ff6b9a"),
    f"{OURS}-triton": ("#b5651d", "#f0a35e"),
    f"{OURS}-compile": ("#a61e4d", "#f06595"),
    f"{OURS}-cuda-graph": ("#8c1d04", "#ff9f80"),
    f"{OURS}-optimize": ("#e64980", "#faa2c1"),
}


def style_of(provider: str) -> str:
    """The CSS classes of a provider."""
    color = f"p-{provider}" if provider in COLORS else "p-other"
    return f"{color} ours" if is_ours(provider) else color


def _rules(index: int) -> str:
    rules = "".join(f".p-{name}{{--c:{colors[index]}}}" for name, colors in COLORS.items())
    return (
        rules
        + ".win{--c:"
        + ("#2b8a3e", "#51cf66")[index]
        + "}.loss{--c:"
        + ("#c92a2a", "#ff8787")[index]
        + "}"
    )


CSS = (
    ":root{color-scheme:light dark;--bg:#fff;--fg:#1c2127;--muted:#5b6570;--rule:#dfe3e8;--card:#f7f8fa;--shade:#9aa4afaa;--warn:#fff3cd;--warn-rule:#d9a300}"
    + _rules(0)
    + "@media (prefers-color-scheme:dark){"
    + ":root{--bg:#14171b;--fg:#e6e9ed;--muted:#9aa4af;--rule:#2e343b;--card:#1b1f24;--shade:#000c;--warn:#3a3000;--warn-rule:#a37f00}"
    + _rules(1)
    + "}"
    + """
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.6rem;margin:0 0 8px}
h2{font-size:1.3rem;margin:32px 0 0}
h3{font-size:1.05rem;margin:32px 0 8px}
.muted{color:var(--muted);margin:4px 0 12px;font-size:.9rem}
.headline{margin:0;padding-left:1.2em}
.scroll{overflow-x:auto;border:1px solid var(--rule);border-radius:8px;background:
 linear-gradient(90deg,var(--bg) 40%,transparent) 0/32px 100% local no-repeat,
 linear-gradient(270deg,var(--bg) 40%,transparent) 100%/32px 100% local no-repeat,
 linear-gradient(90deg,var(--shade),transparent) 0/14px 100% no-repeat,
 linear-gradient(270deg,var(--shade),transparent) 100%/14px 100% no-repeat}
table{border-collapse:collapse;width:100%;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:6px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule)}
th{color:var(--muted);font-weight:600;vertical-align:bottom;white-space:normal}
th.words,td.words{text-align:left;vertical-align:top;white-space:normal;overflow-wrap:anywhere;min-width:7.5em}
td.words:first-child{min-width:10em}
tbody tr:last-child td{border-bottom:0}
.banner{background:var(--warn);border-left:4px solid var(--warn-rule);padding:8px 12px;margin:8px 0;border-radius:4px}
pre{margin:0;padding:10px 12px;font-size:.85rem;line-height:1.6}
.grid{columns:430px;column-gap:16px}
figure{margin:0 0 16px;padding:12px;background:var(--card);border:1px solid var(--rule);border-radius:8px;break-inside:avoid}
figcaption{font-weight:600;font-size:.92rem;margin-bottom:6px}
svg{display:block;width:100%;height:auto}
figure ul{display:flex;flex-wrap:wrap;gap:2px 14px;margin:6px 0 0;padding:0;list-style:none;font-size:.82rem}
figure i{display:inline-block;width:11px;height:11px;border-radius:50%;margin-right:6px;border:2.5px solid var(--c)}
figure i.dashed{width:22px;height:0;border:0;border-top:2px dashed var(--fg);border-radius:0;vertical-align:middle}
figure i.ours{border-radius:3px;background:var(--c)}
text{font:13px system-ui,sans-serif;fill:var(--fg)}
text.axis{fill:var(--muted)}
@media (max-width:600px){
 text{font-size:16px}
 text.long{font-size:12px}
 main{padding:16px 10px 48px}
 table{font-size:.8rem}
 th,td{padding:5px 6px}
 td.words:first-child{min-width:8.5em}
}
text.value{paint-order:stroke;stroke:var(--card);stroke-width:4px}
.p-other{--c:var(--muted)}
.grid line,line.grid{stroke:var(--rule);stroke-width:1}
.ceiling{fill:none;stroke:var(--fg);stroke-width:1.4;stroke-dasharray:5 4}
line.one{stroke:var(--muted);stroke-width:1}
.line{fill:none;stroke:var(--c);stroke-width:1.4}
.line.ours{stroke-width:2.8}
.dot{fill:var(--card);stroke:var(--c);stroke-width:1.8}
.dot.ours{fill:var(--c);stroke:var(--card);stroke-width:1}
.bar{fill:var(--c)}
b.win,b.loss{color:var(--c)}
b.tie{color:var(--muted)}
"""
)
