from configparser import ConfigParser
from pathlib import Path

here = Path(__file__).resolve().parent
_ini = ConfigParser(delimiters=["="])
_ini.read(here.parent / "settings.ini", encoding="utf-8")
cfg = _ini["DEFAULT"]

project, author = cfg["title"], cfg["author"]
copyright, release = cfg["copyright"], cfg["version"]
version = release
html_title, html_baseurl = project, cfg["doc_host"] + cfg["doc_baseurl"] + "/"

extensions = ["myst_nb", "sphinx_design", "sphinx_copybutton"]
exclude_patterns = ["**.ipynb_checkpoints"]
nb_execution_mode = "off"  # stored outputs only: nbdev_test runs the notebooks
nb_merge_streams = True
nb_render_markdown_format = "myst"  # the default, CommonMark, knows no tables
myst_enable_extensions = ["amsmath", "attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath", "tasklist"]
myst_heading_anchors = 4
nb_code_prompt_show = "Show code"
nb_code_prompt_hide = "Hide code"
suppress_warnings = ["myst.header"]  # show_doc headings are level 3 wherever they stand

mathjax_path = "mathjax/tex-svg.js"  # vendored: no CDN
mathjax3_config = {"svg": {"fontCache": "global"}, "options": {"enableMenu": False}}

templates_path = [str(here / "_templates")]
html_static_path = [str(here / "_static")]
html_css_files, html_js_files = ["site.css"], ["site.js"]
html_search_scorer = str(here / "scorer.js")
html_favicon = str(here / "_static" / "logo.svg")
html_theme = "pydata_sphinx_theme"
html_use_index = html_show_sphinx = html_copy_source = html_show_sourcelink = False
html_sidebars = {"**": ["sidebar-global.html"]}
html_context = {"default_mode": "auto"}
html_theme_options = {
    "logo": {
        "text": project,
        "image_light": str(here / "_static" / "logo.svg"),
        "image_dark": str(here / "_static" / "logo.svg"),
        "alt_text": f"{project} - home",
    },
    "github_url": cfg["git_url"],
    "navbar_start": ["navbar-logo"],
    "navbar_center": [],
    "navbar_end": ["theme-switcher", "navbar-icon-links"],
    "navbar_persistent": ["search-button-field"],
    "search_as_you_type": True,
    "search_bar_text": "Search the docs",
    "show_prev_next": True,
    "show_toc_level": 3,
    "navigation_depth": 2,
    "show_nav_level": 1,
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "footer_start": ["copyright"],
    "footer_end": [],
    "back_to_top_button": True,
}
copybutton_selector = "div.cell_input div.highlight pre, div.highlight-sh pre, div.highlight-bash pre"


def setup(app):
    # myst-nb names a folded cell "Toggle hidden content", which hides the name that it shows from those who hear the page
    def named(app, page, template, context, doctree):
        context["body"] = context.get("body", "").replace('<summary aria-label="Toggle hidden content">', "<summary>")

    app.connect("html-page-context", named)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
