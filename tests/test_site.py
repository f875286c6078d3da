"""The documentation site in a real browser: Debian's Chromium, driven by Playwright, served from this machine."""

import functools
import http.server
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "docs/_build/html"
SCREEN, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
AXE = ROOT / "tests/axe/axe.min.js"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
CHAPTERS = {re.sub(r"^\d+[a-zA-Z0-9]*_", "", p.stem.lower()): p.stem for p in sorted((ROOT / "nbs").glob("*.ipynb"))}  # nbdev's page names
PAGES = [*CHAPTERS, "api", "search"]
RAW = {"an equation": r"\$\$|\\begin\{|\\frac|\\left", "a label": r"\{#|@eq-|@fig-|\{eq\}", "a div": r":::",
       "a link": r"\]\((?!\))", "bold type": r"\*\*\w[^*\n]*\w\*\*"}
# the strokes of formulas are nothing to axe, and thousands of them
AXE_RUN = """options => { document.querySelectorAll("mjx-container svg").forEach(e => e.replaceChildren());
    return axe.run(document, {resultTypes: ["violations"], ...options}).then(found => found.violations.filter(
        v => ["serious", "critical"].includes(v.impact)).map(v => `${v.id}: ${v.nodes[0].html}`.slice(0, 400))) }"""
PROSE = """() => { const main = document.querySelector("main").cloneNode(true);
    main.querySelectorAll("pre, code, script, style, mjx-container, .cell_output").forEach(e => e.remove()); return main.textContent }"""
CUT = """() => [...document.querySelectorAll("main :is(p, li, h1, h2, h3, h4, figcaption) > code")].filter(
    e => !e.closest("table, pre") && [...e.getClientRects()].some(r => r.right > innerWidth)).map(e => e.textContent)"""
AT_LEFT = "all => all.every(m => m.firstElementChild.getBoundingClientRect().left >= m.getBoundingClientRect().left - 1)"
BARE = "all => all.filter(i => !i.naturalWidth || !i.alt || /^(_images|data:)/.test(i.alt)).map(i => i.outerHTML.slice(0, 300))"


def built() -> bool:
    "Whether the site is there and newer than all that it is made from."
    made = SITE / "searchindex.js"  # what Sphinx writes last
    inputs = [ROOT / "settings.ini", *(ROOT / "nbs").glob("*.*"), *(ROOT / "autonf_nb").rglob("*.py"), *(ROOT / "docs").glob("*.*"),
              *(ROOT / "docs/_static").rglob("*.*"), *(ROOT / "docs/_templates").glob("*")]
    return made.exists() and made.stat().st_mtime > max(p.stat().st_mtime for p in inputs)


@pytest.fixture(scope="session")
def site():
    "The site's address on this machine; it is built anew if it is out of date."
    pytest.importorskip("myst_nb", reason="the site's tools are not installed: make docs")
    if not built():
        done = subprocess.run([sys.executable, "docs/build.py"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout + done.stderr

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="session")
def context():
    "A context of the browser."
    if not CHROMIUM:
        pytest.skip("no Chromium on the PATH, so the site is not tested: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium.new_context()
        chromium.close()


class Watched:
    "Pages of a browser, and what went wrong on them: console errors, failed requests, requests to another host."

    def __init__(self, context, allowed: str):
        self.context, self.allowed, self.wrong, self.opened = context, allowed, [], []

    def open(self, url: str, size=SCREEN, **options):
        "A page of the context that all tests share, or of one of its own."
        here = self.context.browser.new_context(**options) if options else self.context
        page = here.new_page()
        page.set_viewport_size(size)
        self.opened.append(here if options else page)
        page.on("console", lambda m: self.wrong.append(f"console: {m.text}") if m.type == "error" else None)
        page.on("pageerror", lambda e: self.wrong.append(f"exception: {e}"))
        own = (self.allowed, "data:", "blob:")
        page.on("request", lambda r: self.wrong.append(f"asked for {r.url}") if not r.url.startswith(own) else None)
        page.on("response", lambda r: self.wrong.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        page.goto(url)
        page.evaluate("() => window.MathJax?.startup?.promise")
        return page


    def close(self):
        for opened in self.opened:
            opened.close()
        assert not self.wrong, "\n".join(self.wrong)


@pytest.fixture
def watched(context, site):
    pages = Watched(context, site)
    yield pages
    pages.close()


def violations(page, **options) -> list[str]:
    "What axe-core finds serious or critical."
    page.add_script_tag(path=str(AXE))
    return page.evaluate(AXE_RUN, options)


@pytest.mark.parametrize("name", PAGES)
def test_page(watched, site, name):
    "It loads, nothing is left unrendered, figures have a text, a phone needs no scrolling sideways, axe finds nothing serious."
    page = watched.open(f"{site}{name}.html", size=PHONE)
    assert page.locator("h1:not(.cell_output h1)").count() == 1
    text = page.evaluate(PROSE)  # without code and formulas
    assert not [f"{what}: {found[0]!r}" for what, mark in RAW.items() if (found := re.search(mark + ".{0,30}", text))]
    assert not page.locator("mjx-merror, .math:not(:has(mjx-container))").count(), "a formula is not rendered"
    assert page.eval_on_selector_all("div.math mjx-container", AT_LEFT), "a wide formula does not begin at its left"
    assert not page.evaluate(CUT), "a phone cuts a long word off"
    assert not page.locator("main figure:not(:has(img, canvas))").count(), "a caption without a picture"
    bare = page.eval_on_selector_all("main img", BARE)
    assert not bare, "a figure does not load or has no `#| fig-alt`"
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], "a phone scrolls sideways"
    # the colours of code are looked at in test_contrast: a span for each word takes most of axe's time
    page.evaluate("document.querySelectorAll('pre').forEach(pre => { pre.textContent = pre.textContent })")
    assert not violations(page, rules={"color-contrast": {"enabled": False}})


@pytest.mark.parametrize("name", [name for name in CHAPTERS if name != "index"])
def test_chapter_opens_in_jupyter(site, name):
    html = (SITE / f"{name}.html").read_text(encoding="utf-8")
    (link,) = re.findall(r'href="([^"]+)">Open in Jupyter</a>', html)
    assert link.endswith(f"/nbs/{CHAPTERS[name]}.ipynb")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index", "training", "search"])
def test_contrast(watched, site, name, scheme):
    page = watched.open(f"{site}{name}.html", color_scheme=scheme)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert not violations(page)


def test_search_opens_a_function_at_its_entry(watched, site):
    page = watched.open(f"{site}index.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("load_datas")  # search as you type: half a name, no Enter
    hit = page.locator("#pst-search-dialog #search-results li a").first
    hit.wait_for()
    page.keyboard.type("et")
    page.wait_for_function("document.querySelector('#pst-search-dialog #search-results li a')?.textContent.endsWith('load_dataset')")
    hit.click()
    page.wait_for_url("**/data.html#*load-dataset*")
    heading = page.locator("h3", has_text="load_dataset").first
    top = heading.bounding_box()["y"]
    assert 0 <= top < 450 and heading.is_visible(), "the hit does not open at its entry"


def test_heading_is_not_hidden_under_the_bar(watched, site):
    page = watched.open(f"{site}change_of_variables.html#the-flow")
    bar = page.locator(".bd-header").bounding_box()
    assert page.locator("#the-flow h2").bounding_box()["y"] >= bar["y"] + bar["height"] + 8


def test_wide_formula_is_scrolled_by_keyboard(watched, site):
    page = watched.open(f"{site}splines.html", size=PHONE)
    wide = page.locator("div.math mjx-container[tabindex='0']").first
    wide.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.activeElement.scrollLeft > 0")


def test_figure_opens_by_itself(watched, site):
    page = watched.open(f"{site}linear.html", size=PHONE)
    assert page.eval_on_selector_all("main figure img", "all => all.length && all.every(img => img.parentElement.href === img.src)")


def test_entries(watched, site):
    "Each name has its own source, in the code's order; tables keep `a | b` in one cell; no entry says what only Python asks for."
    page = watched.open(f"{site}api.html")
    names, sources = page.locator(".nb-names td:first-child a"), page.locator(".nb-names td:last-child a")
    assert names.count() == sources.count() > 300
    page.goto(f"{site}data.html")
    row = page.locator("#data-check-context .nb-params tr", has_text="n_features")
    assert row.locator("td").all_inner_texts()[1:3] == ["int | None", "None"] and len(row.locator("td").last.inner_text()) > 10
    for path in SITE.glob("*.html"):
        text = path.read_text(encoding="utf-8").partition("<article")[2]
        assert not re.search(r"Call self as a function| at 0x[0-9a-f]{6}|np\.float64\(", text), path.name
        for module, line, name in re.findall(r'/blob/main/(autonf_nb/[\w/]+\.py)#L(\d+)" title="Source of ([\w.]+)"', text):
            code = (ROOT / module).read_text(encoding="utf-8").splitlines()[int(line) - 1]
            assert re.match(rf"\s*(def|class) {name.split('.')[-1]}\b", code), f"{path.name}: {name}"
    shown = re.findall(r'infocnf\.py#L(\d+)" title', (SITE / "infocnf.html").read_text(encoding="utf-8"))
    assert shown == sorted(shown, key=int)


def test_print_is_dark_on_white(watched, site):
    page = watched.open(f"{site}linear.html", color_scheme="dark")
    page.emulate_media(media="print")
    colours = page.evaluate("['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name])")
    assert colours == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"] and not page.locator(".bd-sidebar-primary").is_visible()


def test_keyboard(watched, site):
    page = watched.open(f"{site}linear.html")
    focus = "document.activeElement"
    page.keyboard.press("Tab")
    assert page.evaluate(f"{focus}.textContent.trim()") == "Skip to main content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate(f"!!{focus}.closest('main')"), "the skip link does not lead into the text"
    look = page.evaluate(f"[getComputedStyle({focus}).outlineStyle, getComputedStyle({focus}).boxShadow]")
    assert look != ["none", "none"], "one cannot see where the focus is"
    page.keyboard.press("Control+k")
    assert page.evaluate(f"{focus}.type") == "search"
    page.keyboard.press("Escape")
    assert not page.locator("#pst-search-dialog").is_visible()
    page.locator(".bd-sidebar-primary a", has_text="Coupling layers").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/coupling.html")


def test_dark_mode_is_switched_and_kept(watched, site):
    page = watched.open(f"{site}index.html", color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.locator("button.theme-switch-button").first.click()
    page.locator("[data-mode=dark], [data-theme-mode=dark], .dropdown-item:has-text('Dark')").locator("visible=true").first.click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark" and page.evaluate(background) != light
    page.goto(f"{site}linear.html")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("getComputedStyle(document.querySelector('main img')).backgroundColor") == "rgb(255, 255, 255)"


def test_phone_menu(watched, site):
    page = watched.open(f"{site}linear.html", size=PHONE, is_mobile=True, has_touch=True)
    page.locator("button.primary-toggle").tap()
    page.locator("dialog a, .bd-sidebar-primary a").filter(has_text="Coupling layers").locator("visible=true").tap()
    page.wait_for_url("**/coupling.html")


def test_next_leads_through_all_chapters(watched, site):
    order, page = ["index"], "index"
    while found := re.search(r'class="right-next"\s+href="([\w-]+)\.html"', (SITE / f"{page}.html").read_text(encoding="utf-8")):
        order.append(page := found[1])
    assert sorted(order) == sorted([*CHAPTERS, "api"]) and order[-1] == "api"


def test_landing_page_fits_one_screen(watched, site):
    page = watched.open(f"{site}index.html")
    for part in ("main figure img", "main pre >> nth=0", ".nb-cards li >> nth=0", ".nb-cards li >> nth=2"):
        box = page.locator(part).first.bounding_box()
        assert box["y"] + box["height"] <= 900, part


class Links(HTMLParser):
    "Ids and links of a page."

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.shown = set(), [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        self.links += [found[key] for key in ("href", "src") if found.get(key)]
        self.shown |= {found["src"]} if tag in ("img", "script") and found.get("src") else set()


def test_links_and_anchors_lead_somewhere(site):
    pages = {path: Links(path) for path in SITE.glob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if url.scheme or url.netloc:
                continue
            if not target.exists() or (target in pages and url.fragment and unquote(url.fragment) not in pages[target].ids):
                broken.append(f"{path.name}: {link}")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("name", PAGES)
def test_page_is_light(site, name):
    "A page with its pictures; scripts and fonts are the same on all pages and are kept by the browser."
    path = SITE / f"{name}.html"
    own = [path, *(SITE / unquote(urlsplit(s).path) for s in Links(path).shown if s.startswith("_images/"))]
    assert sum(p.stat().st_size for p in own) < 3_000_000


def test_interactive_superflow_moves(watched, site):
    page = watched.open(f"{site}interactive_superflow.html")
    said, seen = page.locator("#superflow .say"), {}
    page.locator("#superflow-lam").focus()
    for key in ("Home", "End"):
        page.keyboard.press(key)
        seen[key] = (said.text_content(), page.locator("#superflow .bars").inner_text(),
                     page.locator("#superflow canvas.flow").evaluate("c => c.toDataURL()"))
    free, dear = (float(re.search(r"cost (\d+(?:\.\d+)?)", seen[key][0])[1]) for key in ("Home", "End"))
    assert free > dear and all(a != b for a, b in zip(*seen.values()))
    page.locator("#superflow-step").focus()
    page.keyboard.press("Home")
    assert page.locator("#superflow .bars").inner_text() != seen["End"][1]
    page.locator("#superflow").get_by_label("gas turbine").check()
    assert said.text_content() != seen["End"][0]


def test_interactive_superflow_by_value_and_touch(watched, site):
    "Weights, flow chosen, cost and density follow the slider, on a phone too."
    page = watched.open(f"{site}interactive_superflow.html", size=PHONE, is_mobile=True, has_touch=True)
    lam = page.locator("#superflow-lam")

    def shown():
        chosen, cost = re.search(r"ends at (.+?), cost (\d+(?:\.\d+)?)", page.locator("#superflow .say").text_content()).groups()
        density = page.locator("#superflow canvas.flow").evaluate("c => c.toDataURL()")
        return page.locator("#superflow .bars").inner_text(), chosen, cost, density

    lam.fill(lam.get_attribute("min"))
    first = shown()
    lam.fill(lam.get_attribute("max"))
    last = shown()
    assert all(a != b for a, b in zip(first, last)) and float(first[2]) > float(last[2])
    lam.scroll_into_view_if_needed()
    box = lam.bounding_box()
    page.touchscreen.tap(box["x"] + 0.1 * box["width"], box["y"] + box["height"] / 2)
    assert all(a != b for a, b in zip(shown(), last))


def test_interactive_superflow_without_javascript(context, site):
    bare = context.browser.new_context(java_script_enabled=False)
    page = bare.new_page()
    page.goto(f"{site}interactive_superflow.html")
    assert not page.locator("#superflow").is_visible() and page.locator("main img").first.is_visible()
    # Playwright stops scripts after the page is parsed, so that its browser would not show what <noscript> holds
    assert "the figure and the table below" in " ".join(page.locator("noscript").all_text_contents())
    bare.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_opens_from_disk(context, tmp_path, scheme):
    import torch

    from autonf_nb.report import write_report
    from autonf_nb.search import search_flow

    x = torch.randn(250, 2, generator=torch.Generator().manual_seed(0))
    options = dict(candidates=("RealNVP", "NULL"), n_layers=2, lam=0.1, steps=10, hidden_features=8, batch_size=32, seed=0)
    result = search_flow(x[:200], x[200:], progress=False, **options)
    models = [{"name": "AutoNF", "kind": "found", "nll": result.nll_val, "nll_2se": 0.1, "cost": result.cost},
              {"name": "Gaussian", "kind": "reference", "nll": result.nll_val + 1, "nll_2se": 0.1}]
    report = write_report(tmp_path / "out", {
        "data": {"name": "made_up_" * 10, "columns": ["<b>a</b>", "b" * 80], "rows": {"train": 200, "val": 50}, "held_out": "val",
                 "log_abs_det": 0.5, "checksum": "sha256 " + "f" * 64},
        "search": options, "flow": {"architecture": list(result.architecture), "cost": result.cost}, "models": models,
        "history": result.history, "seconds": result.seconds, "notes": result.notes, "warnings": ["only a test"],
        "samples": {"data": x[200:].numpy(), "flow": x[:50].numpy()}, "noise": x[200:].numpy(),
        "command": f"autonf search /a/{'long/' * 20}path.csv", "usage": {"folder": "/a/" + "long/" * 20, "commands": ["autonf " * 30]}})
    pages = Watched(context, report.as_uri())
    page = pages.open(report.as_uri(), color_scheme=scheme, offline=True, bypass_csp=True)  # for axe: the report itself allows no script
    assert page.locator("h1").count() == 1 and not page.eval_on_selector_all("img", BARE)
    for part in ("weights_block_1", "tradeoff", "marginals_1", "pair", "calibration"):
        assert (report.parent / "figures" / f"{part}.png").exists()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 20, 27)"
    assert dark == (scheme == "dark") and page.evaluate("[...document.images].every(i => i.currentSrc.startsWith('data:'))")
    assert not violations(page)
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], "a phone scrolls sideways"
    assert not violations(page)
    pages.close()
