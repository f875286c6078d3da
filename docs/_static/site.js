// A formula too wide for its place scrolls: let the keyboard reach it
window.addEventListener("load", () => window.MathJax?.startup?.promise.then(() => {
  const widths = new ResizeObserver((all) => all.forEach(({ target }) => { target.tabIndex = target.scrollWidth > target.clientWidth ? 0 : -1; }));
  document.querySelectorAll("div.math").forEach((math) => widths.observe(math));
}));
