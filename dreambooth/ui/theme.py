"""How the studio looks: warm paper and ink, one ember accent, fonts that Gradio brings along, so no network."""

from gradio.themes import Base, Color, LocalFont, Size

EMBER = Color(
    name="ember",
    c50="#fff5f0",
    c100="#ffe6db",
    c200="#ffcab5",
    c300="#ffa685",
    c400="#f67d52",
    c500="#e2562b",
    c600="#c2441d",
    c700="#9f3618",
    c800="#7f2d18",
    c900="#682818",
    c950="#38110a",
)
PAPER = Color(
    name="paper",
    c50="#faf8f4",
    c100="#f3efe8",
    c200="#e6e0d5",
    c300="#d0c8ba",
    c400="#a59c8d",
    c500="#7b7266",
    c600="#5d564c",
    c700="#453f37",
    c800="#2d2924",
    c900="#1f1c18",
    c950="#151310",
)
ROUND = Size(name="round", xxs="3px", xs="4px", sm="6px", md="8px", lg="10px", xl="14px", xxl="20px")
# Of the fonts in Gradio 6.31 few are whole: IBM Plex Sans has regular and bold, its semi-bold the letter a alone.
SANS = (LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif")

THEME = Base(primary_hue=EMBER, secondary_hue=EMBER, neutral_hue=PAPER, radius_size=ROUND, font=SANS).set(
    body_background_fill="*neutral_50",
    body_background_fill_dark="*neutral_950",
    body_text_color="*neutral_900",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    block_background_fill="white",
    block_background_fill_dark="*neutral_900",
    block_border_color="*neutral_200",
    block_border_color_dark="*neutral_800",
    block_label_background_fill="white",
    block_label_background_fill_dark="*neutral_900",
    block_label_border_width="0px",
    block_label_text_color="*neutral_700",
    block_label_text_color_dark="*neutral_300",
    block_label_text_weight="600",
    block_title_text_weight="600",
    block_title_text_color="*neutral_900",
    block_title_text_color_dark="*neutral_100",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_400",
    input_background_fill="*neutral_50",
    input_background_fill_dark="*neutral_950",
    input_border_color="*neutral_300",
    input_border_color_dark="*neutral_700",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_dark="*primary_600",
    button_primary_background_fill_hover_dark="*primary_500",
    button_primary_text_color="white",
    button_primary_text_color_dark="white",
    button_large_padding="12px 20px",
)

CSS = """
.gradio-container { --serif: "Iowan Old Style", "Palatino Linotype", Palatino, Georgia, serif; }
.html-container { padding: 0 !important; }
footer .divider { display: none !important; }
.dark input[type=range] { --neutral-200: var(--neutral-700); }
.grid-container.pt-6 { padding-top: 30px !important; }
.grid-wrap.fixed-height { min-height: 0 !important; max-height: none !important; }
.masthead { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 18px; padding: 10px 0 4px; }
.masthead h1 { font: 600 1.75rem/1.1 var(--serif); margin: 0; color: var(--body-text-color); }
.masthead h1 em { font-style: italic; color: var(--primary-600); }
.dark .masthead h1 em { color: var(--primary-400); }
.masthead p { margin: 0; color: var(--body-text-color-subdued); }
.head, .gallery-head { flex-wrap: wrap; align-items: center; gap: 6px 16px; }
.head > :first-child, .gallery-head > :first-child { flex: 1 1 300px !important; }
.columns { gap: 24px; }
.secondary-wrap input[role=combobox] { text-overflow: ellipsis; padding-right: 28px !important; }
.empty { padding: 14px 16px; border: 1px dashed var(--input-border-color); border-radius: 10px;
  color: var(--body-text-color-subdued); line-height: 1.5; }
.empty strong { color: var(--body-text-color); }
.aside { margin: 0; color: var(--body-text-color-subdued); }
.samples { gap: 10px; }
.samples button { flex-wrap: nowrap !important; padding: 5px 6px !important; }
.samples img { width: 30px; height: 30px; border-radius: 5px; }

.prompts { margin: 0; padding: 14px 16px; border-radius: 10px; background: var(--primary-50);
  border-left: 4px solid var(--primary-500); }
.dark .prompts { background: var(--neutral-900); }
.prompts dt { font-size: .85rem; color: var(--body-text-color-subdued); }
.prompts dd { margin: 0 0 8px; font: italic 1.15rem/1.3 var(--serif); color: var(--body-text-color); }
.prompts dd:last-child { margin-bottom: 0; }

.findings { list-style: none; margin: 6px 0 0; padding: 0; display: grid; gap: 6px; }
.findings li { margin: 0; padding: 8px 12px; border-radius: 8px; border-left: 4px solid var(--neutral-400);
  background: var(--block-background-fill); color: var(--body-text-color); line-height: 1.4; }
.findings li strong { margin-right: 6px; }
.findings .error { border-color: #c2281d; } .findings .error strong { color: #c2281d; }
.findings .warning { border-color: #c98a12; } .findings .warning strong { color: #8f5f06; }
.findings .good { border-color: #1f8a84; } .findings .good strong { color: #17706b; }
.dark .findings .error strong { color: #ff8a7d; } .dark .findings .warning strong { color: #f0b94a; }
.dark .findings .good strong { color: #5cc9c2; }

#photos .delete-button { opacity: 1; }
#photos .grid-container { grid-template: none / repeat(auto-fill, minmax(84px, 1fr)); grid-auto-rows: auto; }
#crops .grid-container { grid-template: none / repeat(auto-fill, minmax(108px, 1fr)); grid-auto-rows: auto; }
#crops .caption-label { display: none; }
#crop-editor { gap: 10px; padding: 12px; border: 1px solid var(--block-border-color); border-radius: 10px; }
#crop-editor .row { align-items: flex-start; }
.coached { list-style: none; margin: 10px 0 0; padding: 0; display: grid; gap: 12px 20px;
  grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); }
.coached > li { display: flex; gap: 12px; margin: 0; color: var(--body-text-color); }
.coached > li > div, .coached > li > ul { flex: 1; min-width: 0; overflow-wrap: anywhere; }
.coached > li > div > span { color: var(--body-text-color-subdued); }
.coached img { width: 72px; height: 72px; margin: 0; border-radius: 8px; }
.word { padding: 0 2px; color: var(--body-text-color); }
.word p { margin: 0; line-height: 1.6; overflow-wrap: anywhere; }
.word.good strong { color: #17706b; } .dark .word.good strong { color: #5cc9c2; }
.word.fair strong { color: #8f5f06; } .dark .word.fair strong { color: #f0b94a; }
.word.poor strong { color: #c2281d; } .dark .word.poor strong { color: #ff8a7d; }
.word summary { cursor: pointer; color: var(--body-text-color-subdued); }
.word ul { margin: 4px 0 0; padding-left: 18px; }
.token { padding: 1px 7px; border-radius: 5px; border: 1px solid var(--input-border-color); font-family: monospace; }
.chips { gap: 8px; align-items: center; }

.live h3 { display: flex; flex-wrap: wrap; align-items: center; gap: 10px; margin: 0 0 8px;
  font: 600 1.25rem/1.2 var(--serif); color: var(--body-text-color); }
.live p { margin: 8px 0 0; color: var(--body-text-color); font-variant-numeric: tabular-nums; }
.bar { height: 10px; border-radius: 5px; overflow: hidden; background: var(--neutral-200); }
.dark .bar { background: var(--neutral-800); }
.bar span { display: block; height: 100%; border-radius: 5px; background: var(--primary-500); transition: width .8s; }
.bar.finished span { background: #1f8a84; }
.bar.failed span, .bar.interrupted span, .bar.cancelled span { background: var(--neutral-400); }
.chip { padding: 2px 10px; border-radius: 999px; font: 600 .78rem/1.5 var(--font); border: 1px solid currentColor;
  color: var(--body-text-color-subdued); white-space: nowrap; }
.chip.running { color: var(--primary-600); } .dark .chip.running { color: var(--primary-400); }
.chip.finished { color: #17706b; } .dark .chip.finished { color: #5cc9c2; }
.chip.failed, .chip.damaged { color: #c2281d; } .dark .chip.failed, .dark .chip.damaged { color: #ff8a7d; }
@media (max-width: 640px) {
  .tab-container button { padding: 0 5px !important; font-size: .8rem !important; }
  .gradio-container .main.app { padding: 12px !important; }
  .masthead h1 { font-size: 1.5rem; }
  .grid-container { grid-template-columns: repeat(auto-fill, minmax(90px, 1fr)) !important; }
}
@media (prefers-reduced-motion: reduce) { .bar span { transition: none; } }
#more-settings h4 { margin: 14px 0 2px; font: 600 1rem/1.4 var(--serif); color: var(--body-text-color); }
.fields { flex-wrap: wrap; }
.fields .form > *, .fields > .block { flex: 1 1 200px !important; min-width: min(200px, 100%) !important; }
.actions { justify-content: flex-start; }
#headline { scroll-margin: 16px; }
#curves:not(:has(figure)), #drift:not(:has(figure)), #sample-pictures:not(:has(table, .empty)),
#progress:not(:has(section, .empty)), #figures:not(:has(section, .empty)) { display: none; }
.estimate { padding: 12px 16px; border: 1px solid var(--block-border-color); border-radius: 10px;
  background: var(--block-background-fill); }
.estimate dl { display: flex; flex-wrap: wrap; gap: 6px 32px; margin: 0; }
.estimate dt { font-size: .85rem; color: var(--body-text-color-subdued); }
.estimate dd { margin: 0; font: 600 1.2rem/1.3 var(--serif); color: var(--body-text-color); }
.estimate p { margin: 6px 0 0; font-size: .85rem; line-height: 1.4; color: var(--body-text-color-subdued); }
.heading { margin: 10px 0 0; font: 600 1.1rem/1.3 var(--serif); color: var(--body-text-color); }
.sure { padding: 12px 16px; border: 1px solid #c2281d; border-radius: 10px; }
.sure button.stop { background: #c2281d; color: white; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.live p.facts { margin: -4px 0 10px; color: var(--body-text-color-subdued); }
.twin { display: flex; flex-wrap: wrap; gap: 4px 10px; align-items: center; }
.stages { display: flex; list-style: none; margin: 0 0 8px; padding: 0; gap: 4px; }
.stages li { flex: 1; margin: 0; padding: 5px 2px 0; border-top: 3px solid var(--neutral-300); font-size: .82rem;
  line-height: 1.3; color: var(--body-text-color-subdued); }
.dark .stages li { border-color: var(--neutral-700); }
.stages li.done { border-color: #1f8a84; } .dark .stages li.done { border-color: #1f8a84; }
.stages li.now { border-color: var(--primary-500); font-weight: 600; color: var(--body-text-color); }
.dark .stages li.now { border-color: var(--primary-500); }

.curves { --instance: #d2481f; --prior: #1f8a84; --drift: #6a55b8; --both: #8f5f06; margin: 4px 0 0;
  color: var(--body-text-color); }
.dark .curves { --instance: #f67d52; --prior: #5cc9c2; --drift: #b3a1f5; --both: #f0b94a; }
.curves figcaption { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 10px; font-weight: 600; }
.curves small { font-weight: 400; color: var(--body-text-color-subdued); }
.curves ul { display: flex; flex-wrap: wrap; gap: 2px 16px; list-style: none; margin: 0 0 0 auto; padding: 0; }
.curves figcaption li { margin: 0; font-size: .9rem; font-weight: 400; font-variant-numeric: tabular-nums; }
.curves figcaption li::before { content: ""; display: inline-block; width: 14px; height: 3px; margin-right: 6px;
  vertical-align: middle; border-radius: 2px; background: var(--instance); }
.curves figcaption li.prior::before { background: var(--prior); }
.curves figcaption li.drift::before { background: var(--drift); }
.curves figcaption li.both::before { background: var(--both); }
.curves .plot { display: flex; gap: 8px; height: 200px; margin-top: 8px; }
.curves .ticks { display: flex; flex-direction: column; justify-content: space-between; min-width: 2.2rem;
  margin: -8px 0; text-align: right; font-size: .78rem; color: var(--body-text-color-subdued); }
.curves svg { flex: 1; min-width: 0; height: 100%; overflow: hidden; }
.curves .steps { display: flex; justify-content: space-between; padding: 4px 0 0 2.7rem; font-size: .78rem;
  color: var(--body-text-color-subdued); }
.curves path, .curves polyline { fill: none; vector-effect: non-scaling-stroke; }
.curves .grid { stroke: var(--neutral-200); stroke-width: 1; } .dark .curves .grid { stroke: var(--neutral-800); }
.curves polyline { stroke: var(--instance); stroke-width: 2.5; stroke-linejoin: round; }
.curves polyline.prior { stroke: var(--prior); }
.curves polyline.drift { stroke: var(--drift); } .curves polyline.both { stroke: var(--both); }
.curves polyline.raw { stroke-width: 1; opacity: .3; }
.charts { display: grid; gap: 0 24px; margin: 10px 0; grid-template-columns: repeat(auto-fit,
  minmax(min(280px, 100%), 1fr)); }
.curves.small { display: grid; grid-template: subgrid / minmax(0, 1fr); grid-row: span 4; margin: 0 0 18px; }
.curves.small figcaption { align-content: start; }
.curves.small ul { margin: 0; width: 100%; } .curves.small li { font-size: .85rem; }
.curves.small .plot { height: 120px; }
.curves.small p { margin: 2px 0 0; font-size: .85rem; line-height: 1.35; color: var(--body-text-color-subdued); }
.curves .dot { stroke: var(--instance); stroke-width: 7; stroke-linecap: round; }
.curves .dot.prior { stroke: var(--prior); } .curves .dot.drift { stroke: var(--drift); }
.curves .dot.both { stroke: var(--both); }
.curves .dot.marked { stroke-width: 12; }
.curves .best { stroke: var(--neutral-400); stroke-width: 1.5; stroke-dasharray: 3 3; }
.curves .level { stroke: var(--neutral-500); stroke-width: 1; stroke-dasharray: 7 4; }
.curves figcaption li.level::before { height: 0; border-top: 1px dashed var(--neutral-500); background: none; }
.curves.small svg { overflow: visible; }
.verdict { margin: 6px 0 0; line-height: 1.45; color: var(--body-text-color); }
#samples th b { display: block; color: #17706b; } .dark #samples th b { color: #5cc9c2; }

.figures .wide { overflow-x: auto; }
.figures table { width: 100%; margin: 6px 0; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.figures th, .figures td, .figures tr { border: 0; background: none; }
.figures th, .figures td { padding: 6px 8px; text-align: right; vertical-align: top; color: var(--body-text-color); }
.figures th { font-weight: 600; } .figures tbody th { text-align: left; }
.figures tbody tr { border-top: 1px solid var(--block-border-color); }
.figures td small { display: block; font-size: .78rem; white-space: nowrap; color: var(--body-text-color-subdued); }
.figures .difference th, .figures .ceiling th { font-weight: 400; }
.figures .ceiling td, .figures .ceiling th { color: var(--body-text-color-subdued); }
@media (max-width: 640px) {
  .figures thead { display: none; }
  .figures tr { display: grid; grid-template-columns: repeat(3, 1fr); padding: 6px 0; }
  .figures th, .figures td { padding: 2px 0; text-align: left; }
  .figures tbody th { grid-column: 1 / -1; }
  .figures td:empty { display: none; }
  .figures td::before { content: attr(data-metric); display: block; font-size: .78rem; font-weight: 600; }
}
.figures .aside { font-size: .9rem; line-height: 1.45; }
.legend { display: grid; gap: 2px 20px; margin: 8px 0 0; font-size: .9rem; line-height: 1.4;
  grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); }
.legend dt { display: inline; font-weight: 600; color: var(--body-text-color); }
.legend dd { display: inline; margin: 0 0 0 6px; color: var(--body-text-color-subdued); }

.samples-table { --edge: var(--body-background-fill); --shade: rgb(31 28 24 / .25);
  overflow-x: auto; scrollbar-width: thin;
  background: linear-gradient(to right, var(--edge) 24px, transparent) 0 0 / 40px 100% no-repeat local,
  linear-gradient(to left, var(--edge) 24px, transparent) 100% 0 / 40px 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) 0 0 / 12px 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) 100% 0 / 12px 100% no-repeat scroll; }
.dark .samples-table { --shade: rgb(250 248 244 / .3); }
#samples { width: 100%; margin: 0; border-collapse: collapse; table-layout: fixed; }
#samples th, #samples td { padding: 5px; border: 0; text-align: left; vertical-align: top; background: none; }
#samples tr { border: 0; border-top: 1px solid var(--block-border-color); background: none; }
#samples thead tr { border-top: 0; }
#samples th { color: var(--body-text-color); font-weight: 600; }
#samples th:first-child { width: 4.6rem; font-size: .82rem; font-weight: 400; color: var(--body-text-color-subdued); }
#samples q { display: block; font: italic .95rem/1.3 var(--serif); color: var(--body-text-color-subdued); }
#samples a { display: inline-block; width: calc(50% - 6px); max-width: 192px; margin: 0 6px 0 0; }
#samples img { width: 100%; aspect-ratio: 1; object-fit: contain; margin: 0; border-radius: 8px; }

.history { list-style: none; margin: 0; padding: 0; }
.history li { margin: 0; padding: 0; border-top: 1px solid var(--block-border-color); }
.history li:first-child { border-top: 0; }
.history button { display: flex; gap: 12px; align-items: center; width: 100%; padding: 8px; border-radius: 8px;
  text-align: left; color: var(--body-text-color); cursor: pointer; }
.history button:hover { background: var(--primary-50); } .dark .history button:hover { background: var(--neutral-800); }
.history button[aria-current] { box-shadow: inset 3px 0 var(--primary-500); }
.history img, .history .blank { flex: none; width: 52px; height: 52px; margin: 0; border-radius: 6px; object-fit: cover;
  background: var(--neutral-200); }
.dark .history .blank { background: var(--neutral-800); }
.history em { font-style: normal; font-size: .85rem; color: var(--body-text-color-subdued); }
.history small { display: block; font-size: .85rem; line-height: 1.4; color: var(--body-text-color-subdued); }
.history button:focus-visible, .twin button:focus-visible { outline: 2px solid var(--primary-500); }
@media (max-width: 640px) {
  .stages li { font-size: .7rem; }
  #samples th:first-child { width: 2.9rem; }
  .curves ul { margin-left: 0; }
}

#method .wrap, #ways .wrap { flex-direction: column; flex-wrap: nowrap; align-items: stretch; }
#method label { align-items: flex-start; }
#method label span { white-space: pre-line; font-size: .88rem; line-height: 1.4; font-weight: 400; }
#method label span::first-line { font-weight: 700; font-size: 1rem; }
.subjects { list-style: none; margin: 6px 0 0; padding: 0; display: grid; gap: 8px; }
.subjects li { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 12px; margin: 0;
  color: var(--body-text-color); }
.subjects li span { flex: 1; min-width: 110px; overflow-wrap: anywhere; }
.subjects small { display: block; font-size: .85rem; color: var(--body-text-color-subdued); }
.subjects img { width: 52px; height: 52px; margin: 0; border-radius: 6px; }
.subjects button, .twin button { text-decoration: underline; color: var(--primary-600); cursor: pointer; }
.dark .subjects button, .dark .twin button { color: var(--primary-400); }
.subjects button:focus-visible { outline: 2px solid var(--primary-500); }
#subjects:not(:has(li)) { display: none; }

.filled-only:not(:has(img)) { display: none !important; }
.drawing p { margin: 0 0 8px; color: var(--body-text-color); font-variant-numeric: tabular-nums; }
#pictures .caption-label { inset: auto 0 0 0; max-width: none; padding: 3px 8px; border: 0; border-radius: 0;
  text-align: left; font-size: .78rem; color: #fff; background: rgb(31 28 24 / .62); }
#pictures:has(.preview) .gallery-container, #pictures:has(.preview) .grid-wrap {
  min-height: min(560px, 120vw) !important; }
.made-with { display: grid; grid-template-columns: auto 1fr; gap: 2px 12px; margin: 0; font-size: .9rem; }
.made-with dt { color: var(--body-text-color-subdued); }
.made-with dd { margin: 0; color: var(--body-text-color); overflow-wrap: anywhere; }
.section { margin: 18px 0 0; font: 600 1.15rem/1.2 var(--serif); color: var(--body-text-color); }
.comparison { width: 100%; table-layout: fixed; border-collapse: collapse; margin: 0 !important; }
.comparison, .comparison tr, .comparison th, .comparison td { border: 0 !important; }
.comparison th, .comparison td { padding: 3px !important; text-align: left; vertical-align: top; }
.comparison a { display: block; padding: 0; }
.comparison thead th { font-weight: 700; color: var(--body-text-color); }
.comparison tbody th { padding-top: 12px !important; font: italic 1.02rem/1.3 var(--serif); overflow-wrap: anywhere;
  color: var(--body-text-color); }
.comparison img, .comparison .pending, .comparison .problem { display: block; width: 100%; aspect-ratio: 1;
  margin: 0 !important; border-radius: 8px; object-fit: contain; background: var(--block-background-fill); }
.comparison .pending { background: var(--neutral-200); }
body:has(#compare-status .bar) .comparison .pending { animation: pending 1.6s ease-in-out infinite alternate; }
.dark .comparison .pending { background: var(--neutral-800); }
.comparison .problem { display: grid; place-items: center; padding: 10px; box-sizing: border-box; text-align: center;
  border: 1px dashed var(--input-border-color); color: var(--body-text-color-subdued); font-size: .85rem; }
@keyframes pending { to { opacity: .45; } }
@media (prefers-reduced-motion: reduce) { .comparison .pending { animation: none !important; } }

.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(190px, 44%), 1fr)); gap: 14px;
  list-style: none; margin: 8px 0 0; padding: 0; }
.cards li { display: flex; flex-direction: column; margin: 0; padding: 10px; border-radius: 12px; min-width: 0;
  border: 1px solid var(--block-border-color); background: var(--block-background-fill);
  color: var(--body-text-color); }
.cards .picture { display: block; }
.cards img, .cards .picture span { display: block; width: 100%; aspect-ratio: 1; margin: 0; border-radius: 8px;
  object-fit: cover; background: var(--neutral-200); }
.dark .cards .picture span { background: var(--neutral-800); }
.cards h4 { margin: 10px 0 0; font: 600 1.05rem/1.3 var(--serif); overflow-wrap: anywhere; }
.cards h4 a { color: var(--body-text-color); text-decoration: none; } .cards h4 a:hover { text-decoration: underline; }
.cards q { margin: 6px 0; font: italic .95rem/1.35 var(--serif); overflow-wrap: anywhere; }
.cards small { font-size: .82rem; line-height: 1.4; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.cards small span { display: inline-block; }
.cards li > :nth-last-child(2) { margin-bottom: 10px; }
.cards button { margin-top: auto; padding: 7px 10px; border-radius: 8px; border: 1px solid var(--input-border-color);
  font-weight: 600; color: var(--primary-600); cursor: pointer; }
.dark .cards button { color: var(--primary-400); }
.cards button:hover { background: var(--primary-50); } .dark .cards button:hover { background: var(--neutral-800); }
.cards a:focus-visible, .cards button:focus-visible { outline: 2px solid var(--primary-500); }
#publish-status:not(:has(div)), #publish-contents:not(:has(ul)), #publisher:not(:has(p, div)) { display: none; }
.strip { display: grid; grid-template-columns: repeat(4, 1fr); gap: 8px; max-width: 560px; margin: 8px 0 10px; }
.strip img { width: 100%; aspect-ratio: 1; margin: 0; border-radius: 8px; object-fit: contain; }
#publish-status h3 { overflow-wrap: anywhere; }
#publish-status h3 a { color: var(--primary-600); } .dark #publish-status h3 a { color: var(--primary-400); }
"""
