"""How the page looks: light and dark by the reader's setting, on paper without what only a screen needs.

Colours of curves are those of Okabe and Ito, told apart without colour vision, too, lightened on dark ground.
"""

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #1b1f24; --soft: #59636e; --line: #d5dae0;
  --card: #f6f8fa; --accent: #0b5cad; --up: #0a6b2d; --down: #b3261e; --upground: #0a6b2d1a; --downground: #b3261e1a;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b8568f; --c4: #56b4e9; --c5: #b87800; --c6: #1b1f24;
  --c7: #7d7d1f; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171a; --text: #e6e9ec; --soft: #a0a9b2; --line: #353c44;
  --card: #1d2126; --accent: #6cb6ff; --up: #6fd08c; --down: #ff8f84; --upground: #6fd08c22; --downground: #ff8f8422;
  --c0: #2f8fd6; --c1: #ff8b3d; --c2: #2fc79b; --c3: #e08fbf; --c4: #a9dcf8; --c5: #f0b93a; --c6: #e6e9ec;
  --c7: #c9c95a; } }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; color: var(--text);
  background: var(--ground); max-width: 78rem; margin: 0 auto; padding: 2.5rem 1.5rem 5rem; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .4rem; text-wrap: balance; }
h2 { font-size: 1.35rem; letter-spacing: -.01em; margin: 3.2rem 0 .8rem; padding-top: .9rem;
  border-top: 2px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .5rem; } p { max-width: 48rem; margin: .5rem 0; }
a { color: var(--accent); text-underline-offset: .15em; } code, pre { font: .86em/1.5 ui-monospace, Menlo, monospace; }
.soft { color: var(--soft); } .lead { font-size: 1.02rem; } nav { margin: 1.1rem 0 0; font-size: .92rem;
  display: flex; flex-wrap: wrap;
  gap: .2rem 1.2rem; }
nav a { white-space: nowrap; }
.wide { overflow-x: auto; margin: .8rem 0; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .75rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  font-weight: 400; } thead th { border-bottom: 2px solid var(--soft); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 600; } th.text, td.text { text-align: left; } tbody tr:hover { background: var(--card); }
th:first-child, td:first-child { padding-left: .2rem; } tr.quoted { color: var(--soft); }
table.main { font-size: 1.02rem; } table.main td .ours { font-weight: 600; white-space: nowrap; }
 table.small { font-size: .84rem; }
td small { display: block; color: var(--soft); white-space: nowrap; font-size: .8rem; }
td.text small { white-space: normal; max-width: 18rem; min-width: 8rem; }
td.figure { white-space: nowrap; }
tbody th.text { min-width: 9rem; max-width: 22rem; overflow-wrap: anywhere; }
.delta { display: inline-block; border-radius: .25rem; padding: 0 .3rem; font-size: .8rem; white-space: nowrap; }
.up { color: var(--up); } .down { color: var(--down); } .judged.up { background: var(--upground); font-weight: 600; }
.judged.down { background: var(--downground); font-weight: 600; }
.failed { color: var(--down); font-weight: 600; } .mark { color: var(--c1); font-weight: 600; }
table.pairs, table.dense { font-size: .87rem; }
:is(table.pairs, table.dense) :is(th, td) { padding: .42rem .5rem; }
table.pairs td { white-space: nowrap; } table.pairs td.text { white-space: normal; min-width: 9rem; max-width: 21rem; }
table.pairs td.wider { min-width: 12rem; }
ul.notes { background: var(--card); padding: .9rem 1.2rem .9rem 2.3rem; border-radius: .5rem; color: var(--soft);
  font-size: .92rem; max-width: 60rem; } ul.notes li { margin: .2rem 0; }
svg text { font-size: 12.5px; fill: var(--text); } svg .grid { stroke: var(--line); }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
.c4 { --c: var(--c4); } .c5 { --c: var(--c5); } .c6 { --c: var(--c6); } .c7 { --c: var(--c7); }
polyline { fill: none; stroke: var(--c); stroke-linejoin: round; } polyline.smooth { stroke-width: 2.2; }
polyline.raw { stroke-width: .9; opacity: .35; } polygon.band { fill: var(--c); opacity: .16; }
  circle { fill: var(--c); }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); gap: 1rem 2rem; }
figure { margin: 0; min-width: 0; } figcaption { margin-bottom: .3rem; }
svg.plot { width: 100%; max-width: 46rem; height: auto; } .caption { color: var(--soft); font-size: .86rem;
  margin: .2rem 0; }
.legend { font-size: .9rem; margin: .1rem 0; } .legend span { margin-right: 1.2rem; white-space: nowrap; }
.legend i { display: inline-block; width: 1.5em; border-top: 3px solid var(--c); margin-right: .45em;
  vertical-align: middle; } .legend i.dashed { border-top-style: dashed; }
.forest { width: 100%; min-width: 46rem; max-width: 70rem; height: auto; margin: .5rem 0; }
.forest .zero { stroke: var(--soft); }
.forest .ours { stroke: var(--c0); stroke-width: 3; } .forest .dot { fill: var(--c0); }
.forest .images { stroke: var(--c0); stroke-width: 8; opacity: .22; }
.forest .shown-same { --c0: var(--up); } .forest .shown-other { --c0: var(--down); }
.forest .paper { fill: var(--ground); stroke: var(--c1); stroke-width: 2; } .forest .range { stroke: var(--c1);
  opacity: .55; }
.forest .name { font-weight: 600; } .forest .verdict { fill: var(--soft); }
.bar { display: flex; height: .9rem; min-width: 9rem; border-radius: .2rem; overflow: hidden; background: var(--card); }
.bar i { display: block; background: var(--c); }
.matrix td { text-align: center; padding: .3rem .5rem; min-width: 2.6rem; } .matrix th { font-size: .84rem; }
.matrix td.text, .matrix th.text { text-align: left; }
.matrix thead th { max-width: 7rem; overflow-wrap: anywhere; text-align: center; }
.changes { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(34rem, 100%), 1fr)); gap: 1.2rem 1.6rem; }
.change { background: var(--card); padding: .8rem; border-radius: .5rem; break-inside: avoid; }
.both { display: grid; grid-template-columns: 1fr 1fr; gap: .7rem; } .both p { font-size: .84rem; margin: .3rem 0 0; }
svg.picture { width: 100%; height: auto; max-height: 24rem; border-radius: .25rem; background: #8883; display: block; }
svg.hidden { position: absolute; width: 0; height: 0; }
.picture rect, .key rect { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke; stroke: var(--stroke); }
.picture rect.under { stroke: #0009; stroke-width: 4; stroke-dasharray: none; }
.truth { --stroke: #fff; } .truth rect { stroke-dasharray: 5 3; } .lost { --stroke: #f0e442; }
.lost rect { stroke-dasharray: 5 3; stroke-width: 3; } .first, .second { --stroke: #56b4e9; }
  .wrong { --stroke: #ff6a3d; }
.key { font-size: .9rem; } .key i { display: inline-block; width: 1.4em; height: .9em; border: 3px solid var(--stroke);
  outline: 1px solid #0006; margin: 0 .4em 0 1.1em; vertical-align: -.1em; }
  .key i.truth, .key i.lost { border-style: dashed; }
pre { background: var(--card); padding: .8rem 1rem; border-radius: .5rem; overflow-x: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; } details { margin: .6rem 0; } summary { cursor: pointer; color: var(--accent); }
@media (max-width: 40rem) { body { padding: 1.2rem 1rem 3rem; } h1 { font-size: 1.5rem; } }
@media print { :root { color-scheme: light; --ground: #fff; --text: #000; --soft: #444; --line: #bbb; --card: #f4f4f4; }
  body { font-size: 10pt; padding: 0; max-width: none; } nav { display: none; } h2 { break-after: avoid; }
  .wide { overflow: visible; } table { font-size: 8.5pt; } table.small { font-size: 7pt; }
  th, td { padding: .2rem .35rem; }
  tr, figure, .change { break-inside: avoid; } a { color: inherit; text-decoration: none; } }
"""
