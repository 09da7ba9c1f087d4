"""How the page looks."""

from __future__ import annotations

CSS = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5b6570;--paper:#fff;--panel:#f5f6f8;--line:#dde1e6;
--good:#1a7f4b;--bad:#b3372c}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7eb;--soft:#9aa5b1;--paper:#14171b;--panel:#1d2228;--line:#333b45;
--good:#4cc38a;--bad:#f07f73}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:28px;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:20px;margin:40px 0 12px}
p{margin:8px 0}
.soft,caption{color:var(--soft)}
.wide{overflow-x:auto;margin:0 0 16px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:15px}
caption{text-align:left;padding:8px 0;caption-side:bottom;font-size:14px}
th,td{padding:5px 0 5px 28px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:0}
thead th{font-weight:600;vertical-align:bottom}
.about td,.about th{text-align:left;white-space:normal}
.best{font-weight:700}
.sd{color:var(--soft);font-weight:400;font-size:13px}
.dot{display:inline-block;width:10px;height:10px;border-radius:50%;margin-right:8px}
figure{margin:0 0 20px;padding:12px 12px 4px;background:var(--panel);border-radius:8px}
figure svg{display:block;max-width:100%;height:auto;margin:0 auto}
figcaption{font-weight:600;padding:0 4px 8px}
pre{background:var(--panel);border-radius:8px;padding:12px 16px;overflow-x:auto;font-size:13px;line-height:1.45}
code{font-family:ui-monospace,Menlo,Consolas,monospace}
details{margin:8px 0}
summary{cursor:pointer}
.verdict{margin:20px 0 0;padding:12px 16px;border-left:4px solid var(--soft);background:var(--panel);
border-radius:0 8px 8px 0}
.holds{border-color:var(--good)}
.not{border-color:var(--bad)}
.facts{display:flex;flex-wrap:wrap;gap:4px 28px;margin:12px 0 0;padding:0;list-style:none}
.facts b{font-weight:600}
@media print{body{font-size:12px}figure{break-inside:avoid}}
"""
