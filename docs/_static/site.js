window.addEventListener("load", () => {
  // A formula too wide for its place scrolls: let the keyboard reach it
  const widths = new ResizeObserver((all) => all.forEach(({ target }) => {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }));
  window.MathJax?.startup?.promise.then(() => document.querySelectorAll("div.math mjx-container").forEach((math) => widths.observe(math)));
  // A figure opens by itself, to be seen larger, on a phone above all
  document.querySelectorAll("main figure > img").forEach((img) => {
    const alone = document.createElement("a");
    alone.href = img.src;
    img.replaceWith(alone);
    alone.append(img);
  });
});
