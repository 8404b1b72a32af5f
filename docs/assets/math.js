// Render what arithmatex marks as math with the vendored KaTeX.
const render = () => {
  for (const element of document.querySelectorAll(".arithmatex")) {
    const source = element.textContent;
    const display = source.startsWith("\\[");
    katex.render(source.slice(2, -2), element, { displayMode: display, throwOnError: false });
  }
};
document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", render) : render();
