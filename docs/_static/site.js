// A formula too wide for its place scrolls: let the keyboard reach it
window.addEventListener("load", () => window.MathJax?.startup?.promise.then(() =>
  document.querySelectorAll("div.math").forEach((math) => { if (math.scrollWidth > math.clientWidth) math.tabIndex = 0; })));
