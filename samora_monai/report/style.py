"""The style sheet of `report.html`: light and dark, for screens, phones and print, with system fonts."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --text: #1b2430; --quiet: #586474; --line: #d5dbe3; --soft: #f4f6f9;
  --mark: #1f5f99; --box: #c9dcee; --bad: #a4262c;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #14181d; --text: #e4e8ed; --quiet: #9aa6b4; --line: #343c46; --soft: #1d232a;
    --mark: #7db4e6; --box: #2c4a66; --bad: #f1897f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1.25rem 3rem; max-width: 76rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: anywhere;
}
h1 { margin: 0; font-size: 1.75rem; line-height: 1.25; font-weight: 600; }
h2 { margin: 2.5rem 0 0.75rem; padding-bottom: 0.25rem; font-size: 1.25rem; border-bottom: 2px solid var(--line); }
h3 { margin: 0 0 0.25rem; font-size: 1.05rem; }
p { margin: 0 0 0.75rem; max-width: 48rem; }
.quiet { color: var(--quiet); }
.purpose { padding: 0.5rem 0.75rem; border-left: 4px solid var(--mark); background: var(--soft); }

.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: 0.75rem; margin: 1.25rem 0; }
.figures div { padding: 0.6rem 0.8rem; border: 1px solid var(--line); border-radius: 4px; }
.figures dt { color: var(--quiet); font-size: 0.85rem; }
.figures dd { margin: 0; font-size: 1.5rem; font-variant-numeric: tabular-nums; }

table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.94rem; }
caption { padding-bottom: 0.25rem; text-align: left; font-weight: 600; }
th, td { padding: 0.35rem 0.5rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: middle; }
thead th {
  color: var(--quiet); font-weight: 500; font-size: 0.85rem; vertical-align: bottom; overflow-wrap: normal;
}
th:first-child { text-align: left; }
tbody th { font-weight: 500; }
tfoot th, tfoot td { border-top: 2px solid var(--line); border-bottom: 0; font-weight: 600; }
.number { overflow-wrap: normal; white-space: nowrap; }
.bad { color: var(--bad); font-weight: 600; }
.metrics { display: grid; grid-template-columns: minmax(0, 1fr); gap: 2rem; align-items: start; }
.metrics th, .metrics td { padding-left: 0.3rem; padding-right: 0.3rem; }
.metrics th:first-child { min-width: 7rem; }
.metrics .plot-column { width: 38%; text-align: center; }

svg { display: block; overflow: visible; }
.axis text { fill: var(--quiet); font-size: 12px; }
.grid { stroke: var(--line); stroke-width: 1; }
.whisker { stroke: var(--mark); stroke-width: 1.5; }
.box { fill: var(--box); stroke: var(--mark); stroke-width: 1; }
.median { stroke: var(--mark); stroke-width: 3; }
.dot { fill: var(--page); stroke: var(--mark); stroke-width: 1.5; }

.case { margin-top: 1.75rem; }
.panels { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 0.5rem; margin: 0.5rem 0; }
.panels figure { margin: 0; }
.panels img { display: block; width: 100%; height: auto; background: #000000; }
.case table { max-width: 44rem; }
.case th:first-child { width: 40%; }
.case .remark { width: 30%; text-align: left; }
.panels figcaption { padding-top: 0.2rem; font-size: 0.85rem; color: var(--quiet); }
.swatch {
  display: inline-block; width: 0.85em; height: 0.85em; margin-right: 0.4em; border-radius: 2px;
  vertical-align: -0.05em;
}
.facts th, .facts td { text-align: left; vertical-align: top; }
.facts th { width: 14rem; color: var(--quiet); font-weight: 500; }
code { font: 0.9em/1.5 ui-monospace, Menlo, Consolas, monospace; }

@media screen and (min-width: 72rem) {
  .metrics { grid-template-columns: minmax(0, 8fr) minmax(0, 7fr); }
}
@media screen and (max-width: 40rem) {
  body { padding: 1rem 0.9rem 2rem; }
  .panels { grid-template-columns: minmax(0, 1fr); }
  .metrics thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .metrics table, .metrics caption, .metrics tbody, .metrics tfoot { display: block; }
  .metrics tr {
    display: flex; flex-wrap: wrap; column-gap: 1.25rem; padding: 0.6rem 0; border-bottom: 1px solid var(--line);
  }
  .metrics tr > *, .metrics tr > td.plot-column { padding: 0.1rem 0; border: 0; text-align: left; }
  .metrics tr > th, .metrics tr > td.plot-column { flex: 0 0 100%; }
  .metrics td::before {
    content: attr(data-name); display: block; color: var(--quiet); font-size: 0.8rem; font-weight: 400;
  }
  .facts th, .facts td { display: block; width: auto; border: 0; padding: 0.1rem 0; }
  .facts tr { display: block; padding: 0.35rem 0; border-bottom: 1px solid var(--line); }
}
@media print {
  :root { color-scheme: light; }
  @page { margin: 14mm; }
  body { padding: 0; max-width: none; font-size: 10pt; }
  h2 { margin-top: 1.5rem; }
  th, td { padding-top: 0.12rem; padding-bottom: 0.12rem; }
  .metrics { display: block; }
  .metrics table { margin-bottom: 1.5rem; }
  h2, h3, caption, .case p { break-after: avoid; }
  tr, p, figure, .panels { break-inside: avoid; }
  tfoot { display: table-row-group; }
  .swatch, .box, .panels img, .purpose { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
