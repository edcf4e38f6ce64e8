"""How the studio looks: warm paper and ink, one ember accent, fonts that Gradio brings along, so no network."""

from gradio.themes import Base, Color, LocalFont, Size

EMBER = Color(
    name="ember", c50="#fff5f0", c100="#ffe6db", c200="#ffcab5", c300="#ffa685", c400="#f67d52", c500="#e2562b",
    c600="#c2441d", c700="#9f3618", c800="#7f2d18", c900="#682818", c950="#38110a",
)  # fmt: skip
PAPER = Color(
    name="paper", c50="#faf8f4", c100="#f3efe8", c200="#e6e0d5", c300="#d0c8ba", c400="#a59c8d", c500="#7b7266",
    c600="#5d564c", c700="#453f37", c800="#2d2924", c900="#1f1c18", c950="#151310",
)  # fmt: skip
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
.columns { gap: 24px; }
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
.chip.failed { color: #c2281d; } .dark .chip.failed { color: #ff8a7d; }
.history { list-style: none; margin: 0; padding: 0; }
.history li { display: flex; flex-wrap: wrap; gap: 4px 10px; align-items: baseline; margin: 0; padding: 8px 0;
  border-top: 1px solid var(--block-border-color); color: var(--body-text-color-subdued); }
.history li strong { color: var(--body-text-color); }
.history li:first-child { border-top: 0; }
@media (max-width: 640px) {
  .gradio-container .main.app { padding: 12px !important; }
  .masthead h1 { font-size: 1.5rem; }
  .grid-container { grid-template-columns: repeat(auto-fill, minmax(90px, 1fr)) !important; }
}
@media (prefers-reduced-motion: reduce) { .bar span { transition: none; } }
"""
