"""The style of the reports' pages: light and dark, wide windows and phones."""

CSS = """\
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5b6475; --line: #d9dde5; --paper: #fff; --card: #f6f7f9;
  --good: #17793f; --bad: #c02626; --torch: #d9480f; --paddle: #1c63d5; --oneflow: #0b8f6a; --over: #c0262614; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaf0; --soft: #a2abbb; --line: #3a4150; --paper: #14171d;
  --card: #1d222b; --good: #5fd08d; --bad: #ff7b72; --torch: #ff8a4c; --paddle: #6ea8ff; --oneflow: #45d1a6;
  --over: #ff7b7222; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 16px 24px 48px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 32px 0 4px; }
p { margin: 4px 0 10px; color: var(--soft); max-width: 78ch; }
header { border-left: 6px solid; padding: 4px 0 4px 16px; margin-top: 12px; }
header.good { border-color: var(--good); } header.bad { border-color: var(--bad); }
.verdict { font-size: 20px; font-weight: 600; color: var(--ink); }
.good { color: var(--good); } .bad { color: var(--bad); }
header.good .verdict b { color: var(--good); } header.bad .verdict b { color: var(--bad); }
.key { display: inline-flex; align-items: center; gap: 6px; margin: 0 18px 0 0; font-size: 14px; color: var(--soft); }
.key i { width: 20px; height: 4px; border-radius: 2px; background: var(--soft); }
.key.none { font-style: italic; }
i.torch { background: var(--torch); } i.paddle { background: var(--paddle); } i.oneflow { background: var(--oneflow); }
.key i.rounding { background: none; border-top: 3px dotted var(--soft); height: 0; border-radius: 0; }
.level { display: grid; grid-template-columns: 300px 1fr 110px; gap: 12px; align-items: center; padding: 6px 0;
  border-top: 1px solid var(--line); }
.level b { display: block; } .level small { color: var(--soft); line-height: 1.3; display: block; }
.level > span { font-weight: 600; text-align: right; white-space: nowrap; }
svg { display: block; max-width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--soft); } svg .name { font-size: 12px; }
.grid { stroke: var(--line); stroke-width: 1; } .axis { stroke: var(--line); stroke-width: 1.5; }
.over { fill: var(--over); } .edge { stroke: var(--bad); stroke-width: 1.5; fill: none; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.line.torch { stroke: var(--torch); stroke-width: 4.5; stroke-opacity: .45; }
.line.paddle { stroke: var(--paddle); } .line.oneflow { stroke: var(--oneflow); stroke-dasharray: 7 4; }
.line.rounding { stroke: var(--soft); stroke-dasharray: 1.5 4; stroke-linecap: round; stroke-width: 2.4; }
.dot { fill: var(--soft); stroke: var(--paper); stroke-width: .8; }
.dot.torch { fill: var(--torch); } .dot.paddle { fill: var(--paddle); } .dot.oneflow { fill: var(--oneflow); }
.dot.torch-ring { stroke: var(--torch); stroke-width: 2.4; }
.dot.paddle-ring { stroke: var(--paddle); stroke-width: 2.4; }
.dot.oneflow-ring { stroke: var(--oneflow); stroke-width: 2.4; }
table { border-collapse: collapse; font-size: 14px; }
td, th { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; } code { font-size: 12.5px; overflow-wrap: anywhere; }
details { border-top: 1px solid var(--line); padding: 6px 0; } summary { cursor: pointer; font-weight: 600; }
.scroll { overflow-x: auto; } .scroll td, .scroll th { white-space: nowrap; }
.narrow { display: none; }
@media (max-width: 700px) {
  main { padding: 8px 12px 32px; } h1 { font-size: 22px; }
  .wide { display: none; } .narrow { display: block; }
  .level { grid-template-columns: 1fr auto; gap: 2px 12px; }
  .level > .narrow { grid-row: 2; grid-column: 1 / -1; }
  td, th { padding-right: 10px; }
}
"""
