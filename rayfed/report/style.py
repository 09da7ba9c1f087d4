"""The style sheet of report pages and of the live page."""

from __future__ import annotations

LIGHT = """--ink:#1b1f24;--soft:#5b6570;--paper:#fff;--panel:#f5f6f8;--line:#dde1e6;
--good:#1a7f4b;--bad:#b3372c"""
DARK = """--ink:#e4e7eb;--soft:#9aa5b1;--paper:#14171b;--panel:#1d2228;--line:#333b45;
--good:#4cc38a;--bad:#f07f73"""
THEMES = f""":root{{color-scheme:light dark;{LIGHT}}}
@media(prefers-color-scheme:dark){{:root{{{DARK}}}}}
:root:has(#switch:checked){{color-scheme:dark;{DARK}}}
@media(prefers-color-scheme:dark){{:root:has(#switch:checked){{color-scheme:light;{LIGHT}}}}}
"""
CSS = (
    THEMES
    + """*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:28px;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:20px;margin:40px 0 12px}
p{margin:8px 0}
.soft,.caption{color:var(--soft)}
.caption{font-size:14px;margin:8px 0 16px;max-width:80ch}
.wide{overflow-x:auto;padding-bottom:1px}
table{border-collapse:separate;border-spacing:0;font-variant-numeric:tabular-nums;font-size:15px}
th,td{padding:5px 0 5px 28px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:0;position:sticky;left:0;background:var(--paper)}
thead th{font-weight:600;vertical-align:bottom}
.about td,.about th,.settings td,.settings th{text-align:left}
.about td,.settings td{white-space:normal;overflow-wrap:anywhere}
.about td:first-child,.settings td:first-child{white-space:nowrap}
.about td{min-width:110px}
.good{color:var(--good)}
.bad{color:var(--bad)}
.sd{color:var(--soft);font-weight:400;font-size:13px}
.line{display:inline-block;width:20px;border-top:3px solid;margin-right:7px;vertical-align:middle}
.block{display:inline-block;width:13px;height:13px;border-radius:2px;margin-right:7px;vertical-align:-1px}
figure{margin:0 0 20px;padding:12px 12px 8px;background:var(--panel);border-radius:8px}
figcaption{font-weight:600;padding:0 4px 4px}
figure .caption{margin:4px 4px 0}
.key{display:flex;flex-wrap:wrap;gap:2px 20px;margin:0;padding:0 4px 6px;list-style:none;font-size:14px}
.panels{display:grid;gap:8px;justify-content:center}
.of1{grid-template-columns:minmax(0,560px)}
.of2{grid-template-columns:repeat(2,minmax(0,1fr))}
.of3{grid-template-columns:repeat(3,minmax(0,1fr))}
.whole{overflow-x:auto;justify-content:start;grid-template-columns:minmax(600px,1fr)}
.side{display:grid;gap:0 16px;grid-template-columns:repeat(auto-fit,minmax(330px,1fr))}
.panels svg{display:block;width:100%;height:auto}
@media(max-width:860px){.of3{grid-template-columns:repeat(2,minmax(0,1fr))}}
@media(max-width:640px){main{padding:20px 16px 48px}h2{margin-top:32px}th,td{padding-left:14px}
th:first-child,td:first-child{white-space:normal;min-width:90px;max-width:42vw;overflow-wrap:break-word}
.of2,.of3,.side{grid-template-columns:minmax(0,1fr)}}
pre{background:var(--panel);border-radius:8px;padding:12px 16px;overflow-x:auto;font-size:13px;line-height:1.45}
.command{white-space:pre-wrap;overflow-wrap:anywhere}
code{font-family:ui-monospace,Menlo,Consolas,monospace}
details{margin:8px 0}
summary{cursor:pointer}
.verdict{margin:20px 0 0;padding:12px 16px;border-left:4px solid var(--soft);background:var(--panel);
border-radius:0 8px 8px 0}
.holds{border-color:var(--good)}
.not{border-color:var(--bad)}
em{color:var(--soft)}
.facts{display:flex;flex-wrap:wrap;gap:4px 28px;margin:12px 0 0;padding:0;list-style:none}
.facts b{font-weight:600;overflow-wrap:anywhere}
.switch{float:right;font-size:14px;cursor:pointer}
@media print{body{font-size:12px}figure{break-inside:avoid}.switch{display:none}}
"""
)
